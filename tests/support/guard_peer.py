"""Our own HTTP server with toy handlers, one of which the fast head reader doesn't find."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from http_peer import Peer, RunningServer, ToyApp, serve
from millstream._config import Settings
from millstream._http.hosts import TrustedProxies
from millstream._http.message import Handler, HttpRequest, Response
from millstream._http.server import Endpoints

Start = Callable[..., Awaitable[RunningServer]]


async def echo(request: HttpRequest) -> Response:
    """Return the request."""
    return Response(body=request.body)


def make_endpoints(routes: dict[tuple[str, str], Handler], settings: Settings, **options: Any) -> Endpoints:
    """Return endpoints. `/exact` and the probes are not on the fast path."""
    table = ToyApp(routes, settings).table
    hot = {key: found for key, found in table.hot.items() if key[1] not in (b"/exact", b"/livez")}
    return Endpoints(table.find, limits=table.limits, policy=table.policy, hot=hot, **options)


@asynccontextmanager
async def run_guarded_servers() -> AsyncIterator[Start]:
    """Yield a function that starts servers, which end with the block."""
    async with AsyncExitStack() as stack:

        async def start(
            more: dict[tuple[str, str], Handler] | None = None,
            *,
            options: dict[str, Any] | None = None,
            proxies: TrustedProxies | None = None,
            **settings: Any,
        ) -> RunningServer:
            routes: dict[tuple[str, str], Handler] = {
                ("POST", "/echo"): echo,
                ("POST", "/exact"): echo,
                ("GET", "/livez"): echo,
            }
            table = make_endpoints(routes | (more or {}), Settings(**settings), **(options or {}))
            return await stack.enter_async_context(serve(table, proxies=proxies))

        yield start


def make_blocking_handler() -> tuple[Handler, asyncio.Event, asyncio.Event]:
    """Return a handler, an event that it sets when it starts, and an event that it waits for."""
    began, go = asyncio.Event(), asyncio.Event()

    async def handler(request: HttpRequest) -> Response:
        began.set()
        await go.wait()
        return Response(body=b"held")

    return handler, began, go


async def expect_refusal(peer: Peer, status: int) -> bytes:
    """Assert that a rejection ends the connection, and return its body."""
    got, headers, body = await peer.reply()
    assert got == status
    assert headers[b"connection"] == b"close"
    assert await peer.rest() == b""
    return body
