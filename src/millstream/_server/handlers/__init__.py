"""One handler per method. It takes a `Call` and returns the members of the result for the call's revision."""

from millstream._server.dispatch import Dispatcher
from millstream._server.handlers.listen import ListenHandlers
from millstream._server.handlers.tools import (
    CompletionHandlers,
    DiscoveryHandlers,
    PromptHandlers,
    ResourceHandlers,
    SessionHandlers,
    ToolHandlers,
)


def install(dispatcher: Dispatcher) -> None:
    """Register the handlers of every method."""
    registry, services = dispatcher.registry, dispatcher.services
    for handlers in (
        ToolHandlers(registry, services),
        ResourceHandlers(registry, services),
        PromptHandlers(registry),
        CompletionHandlers(registry, services),
        SessionHandlers(services),
        ListenHandlers(registry, services),
        DiscoveryHandlers(dispatcher.announcement),
    ):
        dispatcher.serve(handlers.table())
