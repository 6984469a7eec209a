"""Toy handlers for tests that our own server and plain ASGI both pass, and a server with them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from http_peer import WAIT, RunningServer, ToyApp, serve, serve_asgi
from millstream._config import Settings
from millstream._http.message import STREAM_HEAD, Handler, HttpRequest, Response

Start = Callable[..., Awaitable[RunningServer]]


async def echo(request: HttpRequest) -> Response:
    """Return the request body."""
    return Response(body=request.body)


async def _slow(request: HttpRequest) -> Response:
    await asyncio.sleep(0)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.001))
    return Response(body=request.body)


async def _describe(request: HttpRequest) -> Response:
    text = f"{request.method} {request.path} {request.query.decode()} {request.peer} {request.scheme}"
    return Response(body=text.encode())


async def _stream(request: HttpRequest) -> None:
    sink = request.open(200, STREAM_HEAD)
    sink.write(b"one")
    await asyncio.sleep(0)
    sink.write(b"")
    sink.write(b"two")
    await sink.drain()
    sink.close()
    sink.close()
    sink.write(b"after the end")


async def _fail(request: HttpRequest) -> Response:
    raise ValueError("the secret")


async def _fail_late(request: HttpRequest) -> Response:
    request.open(200, STREAM_HEAD).write(b"one")
    await asyncio.sleep(0)
    raise ValueError("the secret")


async def _empty(request: HttpRequest) -> Response:
    return Response(status=204, head=b"")


async def _nothing(request: HttpRequest) -> None:
    return None


ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/echo"): echo,
    ("HEAD", "/echo"): echo,
    ("POST", "/slow"): _slow,
    ("GET", "/describe"): _describe,
    ("POST", "/stream"): _stream,
    ("HEAD", "/stream"): _stream,
    ("POST", "/fail"): _fail,
    ("POST", "/fail-late"): _fail_late,
    ("POST", "/empty"): _empty,
    ("POST", "/nothing"): _nothing,
    ("GET", "/livez"): _empty,
}


@asynccontextmanager
async def parity(way: str) -> AsyncIterator[Start]:
    """Yield a function that starts servers, either our `own` or plain `asgi`. They end with the block."""
    async with AsyncExitStack() as stack:

        async def start(more: dict[tuple[str, str], Handler] | None = None, **settings: Any) -> RunningServer:
            app = ToyApp(ROUTES | (more or {}), Settings(**settings))
            return await stack.enter_async_context({"own": serve, "asgi": serve_asgi}[way](app))

        yield start
