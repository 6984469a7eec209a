"""Stub authentication, for tests of what handlers do with the principal."""

from collections.abc import Awaitable, Callable

from millstream._http.message import Handler, HttpRequest, Response, Sink
from millstream._protocol.principal import Principal


def protect(handler: Handler, judge: Callable[[HttpRequest], Awaitable[Principal | Response | None]]) -> Handler:
    """Wrap a handler: requests get the principal from `judge`, or its response rejects them."""

    async def protected(request: HttpRequest) -> Response | Sink | None:
        found = await judge(request)
        if isinstance(found, Response):
            return found
        request.principal = found
        return await handler(request)

    return protected
