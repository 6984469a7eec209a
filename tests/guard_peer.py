"""A guarded server for tests: toy handlers behind the lane's protocol class, one of them known to ASGI only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from http_peer import Peer, Running, ToyApp, serve
from millstream._config import Settings
from millstream._http.lane import Lane
from millstream._http.limits import HttpLimits
from millstream._http.message import Handler, Request, Response

Start = Callable[..., Awaitable[Running]]


async def echo(request: Request) -> Response:
    """What came."""
    return Response(body=request.body)


class GuardApp(ToyApp):
    """`/asgi` is answered by the adapter only; the lane does not know it."""

    def __init__(self, routes: dict[tuple[str, str], Handler], settings: Settings) -> None:
        super().__init__(routes, settings, lane=True)
        lookup = self.__millstream_lane__.lookup
        self.__millstream_lane__ = Lane(
            lambda method, path: None if path == b"/asgi" else lookup(method, path),
            limits=HttpLimits.of(settings),
            policy=self.__millstream_lane__.policy,
        )


@asynccontextmanager
async def guarded() -> AsyncIterator[Start]:
    """Give a function that starts guarded servers; they end with the block."""
    async with AsyncExitStack() as stack:

        async def start(
            more: dict[tuple[str, str], Handler] | None = None,
            *,
            config: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Running:
            routes: dict[tuple[str, str], Handler] = {
                ("POST", "/echo"): echo,
                ("POST", "/asgi"): echo,
                ("GET", "/livez"): echo,
            }
            app = GuardApp(routes | (more or {}), Settings(**settings))
            return await stack.enter_async_context(serve(app, lane=True, **(config or {})))

        yield start


def held() -> tuple[Handler, asyncio.Event, asyncio.Event]:
    """A handler that says when it began and waits to be let go."""
    began, go = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        began.set()
        await go.wait()
        return Response(body=b"held")

    return handler, began, go


async def refused(peer: Peer, status: int) -> bytes:
    """The refusal is the last thing on the connection."""
    got, headers, body = await peer.reply()
    assert got == status
    assert headers[b"connection"] == b"close"
    assert await peer.rest() == b""
    return body
