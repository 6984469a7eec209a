"""Handlers behind a test's own idea of who asks, where the subject is what a handler does with the caller."""

from collections.abc import Awaitable, Callable

from millstream._http.message import Handler, HttpRequest, Response, Sink
from millstream._protocol.principal import Principal


def protect(handler: Handler, judge: Callable[[HttpRequest], Awaitable[Principal | Response | None]]) -> Handler:
    """A handler whose requests have the principal that `judge` gives, or are answered with its refusal."""

    async def protected(request: HttpRequest) -> Response | Sink | None:
        found = await judge(request)
        if isinstance(found, Response):
            return found
        request.principal = found
        return await handler(request)

    return protected
