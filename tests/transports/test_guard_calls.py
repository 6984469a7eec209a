import asyncio
import logging
import socket
from collections.abc import AsyncIterator

import pytest

from cases import for_each
from guard_peer import Start, echo, expect_refusal, make_blocking_handler, run_guarded_servers
from http_peer import HEAD, WAIT, RunningServer, ToyApp, request, serve
from millstream._config import Settings
from millstream._http.hosts import HostPolicy, TrustedProxies
from millstream._http.message import STREAM_HEAD, Handler, HttpLimits, HttpRequest, Response, Sink
from millstream._http.server import Endpoints
from millstream._http.server.listener import SocketListener


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with run_guarded_servers() as start:
        yield start


async def test_http_1_0_streams_are_not_chunked(start: Start) -> None:
    """RFC 9112 §7.1."""

    async def stream(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"one")
        assert sink.buffered == 0
        sink.write(b"two")

    peer = await (await start({("POST", "/stream"): stream})).connect()
    await peer.send(b"POST /stream HTTP/1.0\r\n" + HEAD + b"\r\n")
    status, headers = await peer.head()
    assert (status, b"transfer-encoding" in headers) == (200, False)
    assert await peer.rest() == b"onetwo"


async def test_calls_canceled_by_the_server_end_their_connection(start: Start) -> None:
    handler, began, _ = make_blocking_handler()
    server = await start({("POST", "/held"): handler})
    peer = await server.connect()
    await peer.send(request(path="/held"))
    await asyncio.wait_for(began.wait(), WAIT)
    for task in list(server.state.tasks):
        task.cancel()
    assert await peer.rest() == b""
    await server.wait_for_connections(0)
    assert server.state.tasks == set()


async def test_waiting_calls_can_be_stopped(start: Start) -> None:
    requests: asyncio.Queue[HttpRequest] = asyncio.Queue()

    async def work(request: HttpRequest) -> Response:
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


async def test_requests_leave_no_tasks_behind(start: Start) -> None:
    server = await start()
    peer = await server.connect()
    for path in ("/echo", "/exact", "/echo"):
        await peer.send(request(path=path, body=b"x"))
        await peer.reply()
    peer.close()
    await server.wait_for_connections(0)
    assert server.state.tasks == set()


async def test_streams_that_outlive_their_handler_leave_no_tasks_behind(start: Start) -> None:
    opened: list[Sink] = []

    async def stream(request: HttpRequest) -> Sink:
        opened.append(request.open(200, STREAM_HEAD))
        opened[0].write(b"hello")
        return opened[0]

    server = await start({("POST", "/stream"): stream})
    peer = await server.connect()
    await peer.send(request(path="/stream"))
    await peer.head()
    assert await peer.chunk() == b"hello"
    opened[0].close()
    assert await peer.chunk() == b""
    peer.close()
    await server.wait_for_connections(0)
    assert server.state.tasks == set()


async def test_lost_connection_is_reported_to_the_running_call(start: Start) -> None:
    began, ended = asyncio.Event(), asyncio.Event()
    ran: list[bytes] = []

    async def work(request: HttpRequest) -> Response:
        request.cancel_on_disconnect = True
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Response()

    async def record(request: HttpRequest) -> Response:
        ran.append(request.body)
        return Response()

    routes: dict[tuple[str, str], Handler] = {("POST", "/work"): work, ("POST", "/record"): record}
    server = await start(routes)
    peer = await server.connect()
    await peer.send(request(path="/work") + request(path="/record"))
    await asyncio.wait_for(began.wait(), WAIT)
    for connection in list(server.state.connections):
        connection.transport.resume_reading()  # else the end of the connection isn't read either
    peer.writer.transport.abort()
    await asyncio.wait_for(ended.wait(), WAIT)
    await server.wait_for_connections(0)
    assert ran == []


async def test_parser_callback_errors_get_500_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(method: str, path: str) -> Handler | None:
        raise ZeroDivisionError

    policy = HostPolicy(loopback_bind=True)
    async with serve(Endpoints(fail, limits=HttpLimits.of(Settings()), policy=policy)) as server:
        peer = await server.connect()
        with caplog.at_level(logging.ERROR):
            await peer.send(request())
            await expect_refusal(peer, 500)
    assert "ZeroDivisionError" in caplog.text


# Shutdown, proxies, and path prefixes.


async def test_shutdown_finishes_calls_and_ends_streams() -> None:
    handler, began, go = make_blocking_handler()
    opened = asyncio.Event()

    async def stream(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"hello")
        opened.set()
        await sink.wait_closed()

    routes: dict[tuple[str, str], Handler] = {
        ("POST", "/held"): handler,
        ("POST", "/stream"): stream,
        ("POST", "/echo"): echo,
    }
    listener = SocketListener(ToyApp(routes, Settings()).table)
    sock = socket.create_server(("127.0.0.1", 0))
    await listener.listen(sock)
    running = RunningServer(listener.state, sock.getsockname()[1], guard=listener.guard)
    idle, calling, streaming = [await running.connect() for _ in range(3)]
    await idle.send(request(body=b"x"))
    await idle.reply()
    await calling.send(request(path="/held") + request(body=b"queued"))
    await streaming.send(request(path="/stream"))
    await streaming.head()
    assert await streaming.chunk() == b"hello"
    await asyncio.wait_for(asyncio.gather(began.wait(), opened.wait()), WAIT)
    listener.close()
    ending = asyncio.create_task(listener.shut_down(WAIT))
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


@for_each(
    ("trusted", "forwarded", "expected"),
    [
        ("127.0.0.1", "192.0.2.1, 203.0.113.9", "203.0.113.9 https"),
        ("198.51.100.1", "192.0.2.1, 203.0.113.9", "127.0.0.1 http"),
        # The client can write everything left of what the first trusted proxy has added.
        ("*", "192.0.2.1, 203.0.113.9", "203.0.113.9 https"),
        ("127.0.0.1,10.0.0.0/8", "192.0.2.1, 203.0.113.9, 10.0.0.7", "203.0.113.9 https"),
        ("127.0.0.1,10.0.0.0/8", "192.0.2.1, no address, 10.0.0.7", "10.0.0.7 https"),
        ("127.0.0.1,10.0.0.0/8", "::ffff:10.0.0.7", "10.0.0.7 https"),
        ("127.0.0.1,10.0.0.0/8", "203.0.113.9, [::ffff:10.0.0.7]:80", "203.0.113.9 https"),
        # One client has one spelling.
        ("*", "198.51.100.077", "127.0.0.1 https"),
        ("*", "::ffff:198.51.100.77", "198.51.100.77 https"),
        ("*", "198.51.100.77:4711", "198.51.100.77 https"),
        ("*", "[2001:DB8:0::1%eth0]:4711", "2001:db8::1 https"),
        ("*", "2001:db8::0001", "2001:db8::1 https"),
        ("*", "_hidden", "127.0.0.1 https"),
        ("*", "", "127.0.0.1 https"),
    ],
)
async def test_trusted_proxies_set_the_peer(start: Start, trusted: str, forwarded: str, expected: str) -> None:
    async def who(request: HttpRequest) -> Response:
        return Response(body=f"{request.peer} {request.scheme}".encode())

    routes: dict[tuple[str, str], Handler] = {("POST", "/who"): who, ("POST", "/exact"): who}
    peer = await (await start(routes, proxies=TrustedProxies(trusted.split(",")))).connect()
    extra = f"X-Forwarded-For: {forwarded}\r\nX-Forwarded-Proto: https\r\n".encode()
    for path in ("/who", "/exact"):
        await peer.send(request(path=path, extra=extra))
        assert (await peer.reply())[2] == expected.encode()


def test_trusted_proxies_that_match_no_address_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "nginx, 10.0.0.5/24,10.0.0.0/33, 127.0.0.1,,10.0.0.0/24")
    proxies = TrustedProxies.from_environment()
    assert [proxies.trusts(each) for each in ("10.0.0.5", "10.0.1.5", "127.0.0.1")] == [True, False, True]
    said = [each.getMessage().partition(", which matches no proxy")[0] for each in caplog.records]
    assert said == [f"FORWARDED_ALLOW_IPS contains {each!r}" for each in ("nginx", "10.0.0.5/24", "10.0.0.0/33")]
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    TrustedProxies.from_environment()
    assert len(caplog.records) == 3


async def test_handlers_see_the_root_path(start: Start) -> None:
    async def where(request: HttpRequest) -> Response:
        return Response(body=f"{request.root_path}|{request.path}".encode())

    routes: dict[tuple[str, str], Handler] = {("POST", "/where"): where, ("POST", "/exact"): where}
    peer = await (await start(routes, options={"root_path": "/base"})).connect()
    for path in ("/where", "/exact"):
        await peer.send(request(path=path))
        assert (await peer.reply())[2] == b"/base|" + path.encode()
