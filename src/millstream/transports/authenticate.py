"""Credentials are looked at in one place: a guard in front of every handler.

The guard turns the credentials of a request into `Request.principal`, or answers with a challenge. Handlers behind it
read the principal and know nothing of credentials. Where nobody asks for any, there is no guard and no frame for it.
"""

from collections.abc import Awaitable, Callable

from millstream.http.message import Handler, Request, Response, Sink
from millstream.protocol.principal import Principal

Guard = Callable[[Request], Awaitable[Principal | Response | None]]
"""Gives the caller, None for an anonymous one, or the reply that refuses the request (with ``WWW-Authenticate`` and
whatever else belongs in its head).
"""


def protect(handler: Handler, guard: Guard | None) -> Handler:
    """A handler with a guard in front of it; the handler itself where there is no guard."""
    if guard is None:
        return handler

    async def protected(request: Request) -> Response | Sink | None:
        found = await guard(request)
        if isinstance(found, Response):
            return found
        request.principal = found
        return await handler(request)

    return protected
