"""The handlers of all methods."""

from millstream._server.dispatch import Dispatcher
from millstream._server.handlers.listen import Listen
from millstream._server.handlers.tools import Handlers


def install(dispatcher: Dispatcher) -> None:
    """Register the handlers of every method."""
    registry, services = dispatcher.registry, dispatcher.services
    dispatcher.serve(Handlers(registry, services, dispatcher.announcement).table())
    dispatcher.serve({"subscriptions/listen": Listen(registry, services)})
