"""Calls under the guard: cancellation, counters, shutdown, and what uvicorn is configured with."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from guard_peer import GuardApp, Start, echo, guarded, held, refused
from http_peer import HEAD, WAIT, Running, ToyApp, request, serve
from millstream._config import Settings
from millstream._http.lane import Lane, load_lane
from millstream._http.limits import HttpLimits
from millstream._http.message import STREAM_HEAD, Handler, Request, Response


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with guarded() as start:
        yield start


async def test_a_stream_for_http_1_0_is_not_chunked(start: Start) -> None:
    """RFC 9112 §7.1: its end is the end of the connection. (uvicorn alone chunks it.)"""

    async def stream(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"one")
        assert sink.buffered == 0
        sink.write(b"two")

    peer = await (await start({("POST", "/stream"): stream})).connect()
    await peer.send(b"POST /stream HTTP/1.0\r\n" + HEAD + b"\r\n")
    status, headers = await peer.head()
    assert (status, b"transfer-encoding" in headers) == (200, False)
    assert await peer.rest() == b"onetwo"


async def test_a_call_that_the_server_cancels_ends_its_connection(start: Start) -> None:
    """uvicorn cancels what is left when the grace time is over; the peer must not wait for ever."""
    handler, began, _ = held()
    server = await start({("POST", "/held"): handler})
    peer = await server.connect()
    await peer.send(request(path="/held"))
    await asyncio.wait_for(began.wait(), WAIT)
    for task in list(server.state.tasks):
        task.cancel()
    assert await peer.rest() == b""
    await server.left(0)
    assert server.state.tasks == set()


async def test_a_waiting_call_can_be_stopped_from_elsewhere(start: Start) -> None:
    """`Request.cancel`: a handler that catches it still gives its reply."""
    requests: asyncio.Queue[Request] = asyncio.Queue()

    async def work(request: Request) -> Response:
        requests.put_nowait(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Response(body=b"stopped")
        return Response()

    peer = await (await start({("POST", "/work"): work})).connect()
    await peer.send(request(path="/work"))
    waiting = await asyncio.wait_for(requests.get(), WAIT)
    await asyncio.sleep(0)
    assert waiting.cancel is not None
    waiting.cancel()
    assert (await peer.reply())[2] == b"stopped"


async def test_requests_of_both_kinds_are_counted_and_leave_no_task(start: Start) -> None:
    """uvicorn's ``limit_max_requests`` and its graceful end look at these."""
    server = await start()
    peer = await server.connect()
    for path in ("/echo", "/asgi", "/echo"):
        await peer.send(request(path=path, body=b"x"))
        await peer.reply()
    await peer.send(request(body=b"x"))
    await peer.reply()
    assert server.state.total_requests == 4
    peer.close()
    await server.left(0)
    assert server.state.tasks == set()


async def test_a_lost_connection_reaches_the_call_in_front(start: Start) -> None:
    """uvicorn tells only the newest request; the one that runs may be older."""
    began, ended = asyncio.Event(), asyncio.Event()
    ran: list[bytes] = []

    async def work(request: Request) -> Response:
        request.cancel_on_disconnect = True
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Response()

    async def record(request: Request) -> Response:
        ran.append(request.body)
        return Response()

    routes: dict[tuple[str, str], Handler] = {("POST", "/work"): work, ("POST", "/record"): record}
    server = await start(routes)
    peer = await server.connect()
    await peer.send(request(path="/work") + request(path="/record"))
    await asyncio.wait_for(began.wait(), WAIT)
    for connection in list(server.state.connections):
        connection.flow.resume_reading()  # type: ignore[union-attr]
    peer.writer.transport.abort()
    await asyncio.wait_for(ended.wait(), WAIT)
    await server.left(0)
    assert ran == []


async def test_an_error_in_a_parser_callback_is_a_500_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The parser turns it into a parse error, which would read as the peer's fault."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    def fail(method: bytes, path: bytes) -> Handler | None:
        raise ZeroDivisionError

    lane = Lane(fail, limits=HttpLimits.of(Settings()), policy=GuardApp({}, Settings()).adapter.policy)
    app.__millstream_lane__ = lane  # type: ignore[attr-defined]
    async with serve(app, lane=True) as server:
        peer = await server.connect()
        with caplog.at_level(logging.ERROR):
            await peer.send(request())
            await refused(peer, 500)
    assert "ZeroDivisionError" in caplog.text


# Shutdown, and what uvicorn is configured with.


async def test_shutdown_finishes_calls_ends_streams_and_closes_the_rest() -> None:
    """A real server: calls in flight are answered, queued ones too, open streams end with their final chunk."""
    handler, began, go = held()
    opened = asyncio.Event()

    async def stream(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"hello")
        opened.set()
        await sink.wait_closed()

    routes: dict[tuple[str, str], Handler] = {
        ("POST", "/held"): handler,
        ("POST", "/stream"): stream,
        ("POST", "/echo"): echo,
    }
    protocol = load_lane().protocol
    assert protocol is not None
    config = uvicorn.Config(
        ToyApp(routes, Settings(), lane=True),
        http=protocol, log_config=None, access_log=False, lifespan="off", port=0,
    )  # fmt: skip
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    running = Running(server.server_state, server.servers[0].sockets[0].getsockname()[1])
    idle, calling, streaming = [await running.connect() for _ in range(3)]
    await idle.send(request(body=b"x"))
    await idle.reply()
    await calling.send(request(path="/held") + request(body=b"queued"))
    await streaming.send(request(path="/stream"))
    await streaming.head()
    assert await streaming.chunk() == b"hello"
    await asyncio.wait_for(asyncio.gather(began.wait(), opened.wait()), WAIT)
    ending = asyncio.create_task(server.shutdown())
    assert await idle.rest() == b""
    assert await streaming.rest() == b"0\r\n\r\n"
    go.set()
    assert (await calling.reply())[2] == b"held"
    status, headers, body = await calling.reply()
    assert (status, headers[b"connection"], body) == (200, b"close", b"queued")
    assert await calling.rest() == b""
    await asyncio.wait_for(ending, WAIT)
    for peer in running.peers:
        peer.close()


@pytest.mark.parametrize("config", [{"limit_concurrency": 100}, {"reset_contextvars": True}, {"log_level": "trace"}])
async def test_what_the_short_cut_would_bypass_switches_it_off_but_not_the_guard(
    start: Start, config: dict[str, Any]
) -> None:
    """The limits, contexts and logs that the user asked uvicorn for are honoured."""
    level = logging.getLogger("uvicorn.error").level
    logging.getLogger("uvicorn.error").setLevel(5 if "log_level" in config else level)
    try:
        server = await start(config=config, max_url=100)
        peer = await server.connect()
        await peer.send(request(body=b"x"))
        assert (await peer.reply())[2] == b"x"
        assert {connection.short for connection in server.state.connections} == {None}  # type: ignore[union-attr]
        await peer.send(b"GET /" + b"a" * 200)
        await refused(peer, 414)
    finally:
        logging.getLogger("uvicorn.error").setLevel(level)


@pytest.mark.parametrize(
    ("trusted", "expected"), [("127.0.0.1", b"203.0.113.9 https"), ("198.51.100.1", b"127.0.0.1 http")]
)
async def test_a_trusted_proxy_says_who_the_peer_is(start: Start, trusted: str, expected: bytes) -> None:
    """What uvicorn's proxy middleware does on the ASGI path, in the lane and from trusted addresses only."""

    async def who(request: Request) -> Response:
        return Response(body=f"{request.peer} {request.scheme}".encode())

    routes: dict[tuple[str, str], Handler] = {("POST", "/who"): who, ("POST", "/asgi"): who}
    peer = await (await start(routes, config={"forwarded_allow_ips": trusted})).connect()
    extra = b"X-Forwarded-For: 192.0.2.1, 203.0.113.9\r\nX-Forwarded-Proto: https\r\n"
    for path in ("/who", "/asgi"):
        await peer.send(request(path=path, extra=extra))
        assert (await peer.reply())[2] == expected


async def test_the_root_path_is_told_to_the_handler(start: Start) -> None:
    """Every URL that the server hands out includes it."""

    async def where(request: Request) -> Response:
        return Response(body=f"{request.root_path}|{request.path}".encode())

    routes: dict[tuple[str, str], Handler] = {("POST", "/where"): where, ("POST", "/asgi"): where}
    peer = await (await start(routes, config={"root_path": "/base"})).connect()
    for path in ("/where", "/asgi"):
        await peer.send(request(path=path))
        assert (await peer.reply())[2] == b"/base|" + path.encode()


async def test_an_application_without_a_lane_is_guarded_too() -> None:
    """FastAPI with a server mounted in it, run with our class."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with serve(app, lane=True) as server:
        peer = await server.connect()
        await peer.send(request(path="/any"))
        assert (await peer.reply())[2] == b"ok"
        await peer.send(b"GET / HTTP/1.1\r\n\r\n")
        await refused(peer, 400)
