import asyncio
import gc
import json
import logging
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cases import for_each
from guard_peer import Start, expect_refusal, run_guarded_servers
from http_peer import HEAD, WAIT, ToyApp, request, serve
from millstream import Context, Server
from millstream._config import Settings
from millstream._http.asgi import AsgiAdapter, AsgiExchange
from millstream._http.hosts import HostPolicy
from millstream._http.message import STREAM_HEAD, HttpLimits, HttpRequest, Response, Sink
from millstream._http.server import Endpoints
from millstream._http.server.connection import MAX_PIPELINE, ServerExchange
from millstream._server.calls.call import Call
from millstream._transports.streamable import PostReplyChannel
from wire import ask_asgi, encode_headers, encode_request, per_request, routing, run_wire

SIZE = 1_000_003
"""Bytes of a body: nothing else has this size."""
USUAL = b"POST %b HTTP/1.1\r\n" + HEAD + b"Content-Length: %d\r\n\r\n"
ODD = b"POST %b HTTP/1.1\r\n" + HEAD + b"X-Odd:1\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST %b HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with run_guarded_servers() as start:
        yield start


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_other_tests() -> None:  # pyright: ignore[reportUnusedFunction]
    """What is here already is no subject of these tests: neither the collector nor `gc.get_objects` goes through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only the counts of references free anything."""
    logging.disable()  # a captured record keeps the traceback of a call that failed, and so its body
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


class Watch:
    """Handlers, and how many of the bodies that they were given are still alive."""

    def __init__(self) -> None:
        self.given = 0
        self.alive = 0

    def note(self, request: HttpRequest) -> None:
        """Give a request a body that tells when it is freed."""
        watch = self

        class Body(bytes):
            def __del__(self) -> None:
                watch.alive -= 1

        self.given += 1
        self.alive += 1
        request.body = Body(request.body)

    async def reply(self, request: HttpRequest) -> Response:
        """A plain call."""
        self.note(request)
        return Response(b"ok")

    async def wait(self, request: HttpRequest) -> Response:
        """A call that ends when its client goes."""
        self.note(request)
        request.cancel_on_disconnect = True
        await asyncio.Event().wait()
        return Response()

    async def fail(self, request: HttpRequest) -> Response:
        """A call that raises."""
        self.note(request)
        await asyncio.sleep(0)
        raise ValueError("a fault")

    async def stream(self, request: HttpRequest) -> None:
        """A stream that waits for its end."""
        self.note(request)
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"data: 1\n\n")
        await sink.wait_closed()

    async def listen(self, request: HttpRequest) -> Sink:
        """A stream that others write to."""
        self.note(request)
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"data: 1\n\n")
        return sink

    async def freed(self) -> None:
        """Wait until every body that was noted is gone."""
        assert self.given
        await _until(lambda: self.alive == 0)


def held_bodies(connections: list[Any]) -> int:
    """How many bytes of bodies these protocol objects still refer to."""
    return sum(len(each.connection.body) + (0 if each.connection.newest is None else SIZE) for each in connections)


@pytest.mark.usefixtures("no_collector")
@for_each("head", [USUAL, ODD, CHUNKED], ids=["usual", "parsed", "chunked"])
@for_each("path", [b"/echo", b"/exact"])
@for_each("lane", [True, False])
async def test_truncated_body_is_freed_with_its_connection(head: bytes, path: bytes, lane: bool) -> None:
    watch = Watch()
    app = ToyApp({("POST", "/echo"): watch.reply}, Settings())
    async with serve(app, lane=lane) as running:
        peer = await running.connect()
        await peer.send(request(body=b"x"))  # the Host is known from now on
        await peer.reply()
        await peer.send(head % (path, SIZE) + b"y" * (SIZE // 2))
        (protocol,) = running.state.connections
        gone = weakref.ref(protocol)
        del protocol
        peer.writer.transport.abort()
        await running.wait_for_connections(0)
        await _until(lambda: gone() is None)
        await watch.freed()


@pytest.mark.usefixtures("no_collector")
@for_each("head", [USUAL, ODD], ids=["usual", "parsed"])
@for_each("name", ["reply", "wait", "fail", "stream", "listen"])
@for_each("lane", [True, False])
async def test_body_is_freed_when_the_connection_ends(head: bytes, name: str, lane: bool) -> None:
    watch = Watch()
    app = ToyApp({("POST", "/echo"): watch.reply, ("POST", f"/{name}"): getattr(watch, name)}, Settings())
    async with serve(app, lane=lane) as running:
        peer = await running.connect()
        await peer.send(request(body=b"x"))
        await peer.reply()
        for _ in range(3):
            await peer.send(head % (f"/{name}".encode(), SIZE) + b"y" * SIZE)
            if name in ("stream", "listen"):
                await peer.head()
                break
            if name == "wait":
                await _until(lambda: watch.given == 2)
                break
            await peer.reply()
        connections = list(running.state.connections)
        peer.writer.transport.abort()
        await running.wait_for_connections(0)
        await watch.freed()
        assert not lane or held_bodies(connections) == 0


@pytest.mark.usefixtures("no_collector")
@for_each("name", ["reply", "wait", "fail", "stream", "listen"])
async def test_body_is_freed_after_the_call_under_any_asgi_server(name: str) -> None:
    watch = Watch()
    routes = {("POST", f"/{name}"): getattr(watch, name)}
    adapter = AsgiAdapter(
        Endpoints(
            lambda method, path: routes.get((method, path)),
            limits=HttpLimits.of(Settings()),
            policy=HostPolicy(loopback_bind=True),
        )
    )
    scope = {
        "type": "http", "method": "POST", "path": f"/{name}", "headers": [(b"host", b"127.0.0.1")], "client": None
    }  # fmt: skip
    given = iter([{"type": "http.request", "body": b"y" * SIZE, "more_body": False}])

    async def receive() -> Any:
        for message in given:
            return message
        if name in ("reply", "fail"):
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        """Nobody reads it."""

    await asyncio.wait_for(adapter(scope, receive, send), WAIT)
    await watch.freed()


def alive(*kinds: type) -> int:
    """How many objects of these kinds there are."""
    return sum(isinstance(each, kinds) for each in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
@for_each("way", ["lane", "asgi"])
@for_each("method", ["subscriptions/listen", "tools/call"])
async def test_abandoned_streams_are_not_kept_in_memory(way: str, method: str) -> None:
    server = Server("streams")

    @server.tool
    async def report(ctx: Context) -> str:
        """Report and wait."""
        await ctx.progress(1)
        await asyncio.Event().wait()
        return ""

    named: dict[str, Any] = {"name": "report", "arguments": {}}
    asked: dict[str, Any] = {"notifications": {"toolsListChanged": True}}
    message = per_request(method, named if method == "tools/call" else asked, 7)
    message["params"]["_meta"]["progressToken"] = "p"
    headers = routing(method, "report" if method == "tools/call" else "")
    body = json.dumps(message).encode()
    gc.collect()
    before = alive(Call, PostReplyChannel, ServerExchange, AsgiExchange)  # of other tests of this process
    async with run_wire(server, way) as wire:
        for _ in range(3):
            if wire.running is None:
                await ask_asgi(
                    server, "POST", "/mcp", encode_headers(headers), body, stop_when=lambda data: b"data: {" in data
                )
            else:
                peer = await wire.running.connect()
                await peer.send(encode_request("POST", "/mcp", encode_headers(headers), body))
                await peer.head()
                await peer.chunk()
                peer.writer.transport.abort()
                await wire.running.wait_for_connections(0)
        await _until(lambda: alive(Call, PostReplyChannel, ServerExchange, AsgiExchange) <= before)


async def test_unfinished_bodies_are_capped_under_any_asgi_server() -> None:
    watch = Watch()
    limits = HttpLimits.of(Settings(max_incoming_bytes=500, max_body=250))
    adapter = AsgiAdapter(
        Endpoints(lambda method, path: watch.reply, limits=limits, policy=HostPolicy(loopback_bind=True))
    )
    go = asyncio.Event()

    async def post() -> tuple[int, dict[bytes, bytes]]:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/x",
            "headers": [(b"host", b"127.0.0.1")],
            "client": ("192.0.2.1", 1),
        }
        given = iter([b"y" * 50, b"y" * 50])
        sent: list[Any] = []

        async def receive() -> Any:
            for piece in given:
                return {"type": "http.request", "body": piece, "more_body": True}
            await go.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await adapter(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    held = [asyncio.create_task(post()) for _ in range(2)]
    await _until(lambda: adapter.body_budget.used == 200)
    status, headers = await post()
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
    assert adapter.body_budget.used == 200
    go.set()
    assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]
    assert adapter.body_budget.used == 0


@for_each("head", [USUAL, ODD, CHUNKED], ids=["usual", "parsed", "chunked"])
@for_each("path", [b"/echo", b"/exact"])
async def test_unfinished_bodies_have_a_common_limit(start: Start, head: bytes, path: bytes) -> None:
    server = await start(max_incoming_bytes=500, max_body=250)
    await _known_host(server)
    holding = [await server.connect() for _ in range(3)]
    for count, peer in enumerate(holding, 1):
        await peer.send(head % (path, 200) + b"y" * 50)
        await peer.send(b"y" * 50)
        if count < 3:
            await _until(lambda count=count: _guard(server).unfinished.used == 100 * count)  # type: ignore[misc]
    body = await expect_refusal(holding[2], 503)
    assert b"too much data" in body
    assert _guard(server).unfinished.used == 200
    await holding[0].send(b"y" * 100 + (b"\r\n0\r\n\r\n" if head is CHUNKED else b""))
    if head is not CHUNKED:
        assert len((await holding[0].reply())[2]) == 200
    holding[1].writer.transport.abort()
    for peer in holding:
        peer.writer.transport.abort()
    await server.wait_for_connections(0)
    assert _guard(server).unfinished.used == 0


async def _known_host(server: Any) -> None:
    peer = await server.connect()
    await peer.send(request(body=b"x"))
    await peer.reply()
    peer.writer.transport.abort()
    await server.wait_for_connections(0)


def _guard(server: Any) -> Any:
    return server.guard


async def _until(fact: Any) -> None:
    async with asyncio.timeout(WAIT):
        while not fact():  # noqa: ASYNC110  counts tell nobody
            await asyncio.sleep(0.002)


@pytest.mark.many
@for_each("first", [b"", b"X-Odd:1\r\n"], ids=["usual", "parsed"])
@for_each("waits", [False, True])
async def test_three_thousand_requests_in_one_segment_are_answered_in_order(first: bytes, waits: bool) -> None:

    async def echo(request: HttpRequest) -> Response:
        if waits:
            await asyncio.sleep(0)
        return Response(request.body)

    async with serve(ToyApp({("POST", "/echo"): echo}, Settings()), lane=True) as running:
        peer = await running.connect()
        await peer.send(request(body=b"known"))
        await peer.reply()
        (connection,) = running.state.connections
        pipeline = b"".join(request(body=b"%d" % number, extra=first) for number in range(3001))
        # From the loop and in one piece, as a socket with a large buffer gives it.
        asyncio.get_running_loop().call_soon(connection.data_received, pipeline)  # type: ignore[union-attr]
        for number in range(1 + MAX_PIPELINE):
            status, headers, body = await peer.reply()
            assert (status, body) == (200, b"%d" % number)
        assert headers[b"connection"] == b"close"
        assert await peer.rest() == b""
