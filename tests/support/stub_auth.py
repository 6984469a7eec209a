"""Handlers with a test's own authentication, where the subject is how handlers use the caller."""

from collections.abc import Awaitable, Callable

from millstream._http.message import Handler, HttpRequest, Response, Sink
from millstream._protocol.principal import Principal


def protect(handler: Handler, judge: Callable[[HttpRequest], Awaitable[Principal | Response | None]]) -> Handler:
    """Wrap a handler: `judge` returns the principal of a request, or a refusal."""

    async def protected(request: HttpRequest) -> Response | Sink | None:
        found = await judge(request)
        if isinstance(found, Response):
            return found
        request.principal = found
        return await handler(request)

    return protected
