import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from cases import for_each
from guard_peer import Start, echo, expect_refusal, make_blocking_handler, run_guarded_servers
from http_messages import HttpRequest, Response
from http_peer import HEAD, STREAM_HEAD, WAIT, Endpoints, HostPolicy, HttpLimits, Peer, request, serve
from millstream import Settings

PATHS = pytest.mark.parametrize("path", ["/echo", "/exact"])
"""A hot endpoint, and one that the fast head reader does not find: the limits are the same."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with run_guarded_servers() as start:
        yield start


# Time.


@for_each("data", [b"P", b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Slow:"])
async def test_missing_headers_get_408(start: Start, data: bytes) -> None:
    peer = await (await start(header_timeout=0.1)).connect(data)
    await expect_refusal(peer, 408)


async def test_silent_connections_are_closed(start: Start) -> None:
    peer = await (await start(header_timeout=0.1)).connect(b"\r\n\r\n")
    assert await peer.rest() == b""


async def test_idle_connections_are_closed_after_the_keep_alive_time(start: Start) -> None:
    peer = await (await start(keep_alive=0.1)).connect()
    await peer.send(request(body=b"x") + request(path="/exact", body=b"y"))
    assert [(await peer.reply())[2] for _ in range(2)] == [b"x", b"y"]
    assert await peer.rest() == b""


@PATHS
async def test_missing_body_gets_408(start: Start, path: str) -> None:
    peer = await (await start(body_timeout=0.1)).connect()
    await peer.send(b"POST %b HTTP/1.1\r\n%bContent-Length: 10\r\n\r\nabc" % (path.encode(), HEAD))
    await expect_refusal(peer, 408)


async def test_running_calls_have_no_guard_timeout(start: Start) -> None:
    handler, began, go = make_blocking_handler()
    server = await start({("POST", "/held"): handler}, header_timeout=0.1, body_timeout=0.1, keep_alive=0.1)
    peer = await server.connect(request(path="/held"))
    await asyncio.wait_for(began.wait(), WAIT)
    idle = await server.connect()
    assert await idle.rest() == b""
    go.set()
    assert (await peer.reply())[2] == b"held"


async def test_peers_that_do_not_read_are_disconnected(start: Start) -> None:
    closed = asyncio.Event()

    async def pour(request: HttpRequest) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(closed.set)
        sink.write(b"x" * 16_000_000)
        await sink.wait_closed()

    peer = await (await start({("POST", "/pour"): pour}, write_timeout=0.1)).connect(small_buffer=True)
    await peer.send(request(path="/pour"))
    await asyncio.wait_for(closed.wait(), WAIT)


@pytest.mark.many
async def test_unread_replies_pause_reading(start: Start) -> None:
    calls = 0

    async def large(request: HttpRequest) -> Response:
        nonlocal calls
        calls += 1
        return Response(body=b"x" * 1_000_000)

    peer = await (await start({("POST", "/large"): large})).connect(small_buffer=True)
    await peer.send(request(path="/large") * 40)
    for _ in range(500):
        await asyncio.sleep(0)
    early = calls
    for _ in range(40):
        assert len((await peer.reply())[2]) == 1_000_000
    assert early < 40
    assert calls == 40


# Hosts, connections, counters.


@PATHS
@for_each("hosts", [b"", HEAD + HEAD, HEAD + b"Host: localhost\r\n", b"Host: a b\r\n", b"Host:\r\n"])
async def test_requests_need_exactly_one_valid_host(start: Start, path: str, hosts: bytes) -> None:
    """RFC 9112 §3.2."""
    peer = await (await start()).connect()
    await peer.send(b"POST " + path.encode() + b" HTTP/1.1\r\n" + hosts + b"Content-Length: 0\r\n\r\n")
    assert (await peer.reply())[0] == 400


async def test_probes_need_no_host(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert (await peer.reply())[0] == 200


async def test_connections_above_the_cap_get_503_with_retry_after(start: Start) -> None:
    server = await start(max_connections=2)
    first, second = await server.connect(), await server.connect()
    for peer in (first, second):
        await peer.send(request(body=b"x"))
        assert (await peer.reply())[0] == 200
    third = await server.connect()
    await third.send(request(body=b"x"))
    status, headers, _ = await third.reply()
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
    assert await third.rest() == b""
    third.close()
    first.close()
    await server.wait_for_connections(1)
    fourth = await server.connect()
    await fourth.send(request(body=b"x"))
    assert (await fourth.reply())[0] == 200


async def test_connections_are_capped_per_address(start: Start) -> None:
    server = await start(max_connections_per_address=1)
    first = await server.connect()
    await first.send(request(body=b"x"))
    await first.reply()
    second = await server.connect()
    await second.send(request(body=b"x"))
    await expect_refusal(second, 503)
    first.close()
    second.close()
    await server.wait_for_connections(0)
    third = await server.connect()
    await third.send(request(body=b"x"))
    assert (await third.reply())[0] == 200


@for_each("cap", [{"max_connections": 1}, {"max_connections_per_address": 1}])
@for_each("head_only", [False, True])
async def test_only_probes_are_answered_above_the_cap(start: Start, cap: dict[str, int], head_only: bool) -> None:
    server = await start({("HEAD", "/livez"): echo}, **cap)
    full = await server.connect()
    await full.send(request(body=b"x"))
    assert (await full.reply())[0] == 200
    probe = await server.connect()
    await probe.send(request("HEAD" if head_only else "GET", "/livez?x") + request(body=b"behind it"))
    status, headers, _ = await probe.reply(head_only=head_only)
    assert (status, headers[b"connection"]) == (200, b"close")
    assert await probe.rest() == b""
    for method, path in (("POST", "/echo"), ("POST", "/exact"), ("GET", "/liv%65z"), ("POST", "/livez"), ("GET", "/")):
        other = await server.connect()
        await other.send(request(method, path))
        await expect_refusal(other, 503)
    slow = await server.connect()
    await slow.send(b"GET /livez HTTP/1.1\r\n" + HEAD + b"Content-Length: 1\r\n\r\n")
    await expect_refusal(slow, 503)
    upgrade = await server.connect()
    await upgrade.send(b"GET /ws HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await expect_refusal(upgrade, 503)
    await full.send(request(body=b"still served"))
    assert (await full.reply())[2] == b"still served"


async def test_connections_for_probes_above_the_cap_are_few_and_short(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._http.server.listener._MAX_SPARES", 1)
    monkeypatch.setattr("millstream._http.server.listener._LINGER", WAIT)
    server = await start(max_connections=1)
    full = await server.connect()
    await full.send(request(body=b"x"))
    await full.reply()
    idle = await server.connect()
    await expect_refusal(await server.connect(), 503)
    with monkeypatch.context() as later:
        later.setattr("millstream._http.server.listener._LINGER", -1.0)
        server.guard._sweep()
    assert await idle.rest() == b""
    probe = await server.connect()
    await probe.send(request("GET", "/livez"))
    assert (await probe.reply())[0] == 200


async def test_excess_connections_are_dropped_without_a_reply(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._http.server.listener._MAX_LINGERING", 0)
    monkeypatch.setattr("millstream._http.server.listener._MAX_SPARES", 0)
    server = await start(max_connections=1)
    first = await server.connect()
    await first.send(request(body=b"x"))
    await first.reply()
    assert await (await server.connect()).rest() == b""


async def test_rejected_peers_that_stay_are_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._http.server.listener._LINGER", 0.0)
    server = await start(header_timeout=0.1)
    peer = await server.connect(b"garbage\r\n\r\n")
    await expect_refusal(peer, 400)
    await server.wait_for_connections(0)


async def test_websockets_count_as_connections(start: Start) -> None:
    async def app(socket: Any) -> None:
        async def reading() -> None:
            while isinstance(message := await socket.receive(), str):
                socket.answer(message.encode())

        await socket.accept("")
        await socket.run(reading())

    limits = HttpLimits.of(Settings(max_connections_per_address=1))
    table = Endpoints(lambda method, path: None, limits=limits, policy=HostPolicy(), websocket=app)
    async with serve(table) as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws") as socket:
            await socket.send("one")
            assert await asyncio.wait_for(socket.recv(), WAIT) == "one"
            guard = server.guard
            for sweep in (lambda: None, guard._sweep):
                sweep()
                other = await server.connect()
                await other.send(request(body=b"x"))
                await expect_refusal(other, 503)
                other.close()
            await socket.send("two")
            assert await asyncio.wait_for(socket.recv(), WAIT) == "two"
        await server.wait_for_connections(0)
        guard._sweep()
        peer = await server.connect()
        await peer.send(b"garbage\r\n\r\n")
        await expect_refusal(peer, 400)


async def test_unread_replies_have_a_common_limit(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    answered = 0

    async def large(request: HttpRequest) -> Response:
        nonlocal answered
        answered += 1
        return Response(body=b"x" * 20_000_000)

    server = await start({("POST", "/large"): large}, max_outgoing_bytes=10_000_000)
    peers: list[Peer] = []
    for number in range(1, 4):
        peers.append(await server.connect(request(path="/large"), small_buffer=True))
        async with asyncio.timeout(WAIT):
            while answered < number or not server.guard.unsent.used:  # noqa: ASYNC110  nothing signals it
                await asyncio.sleep(0)
        await server.wait_for_connections(1)
    assert server.state.cut == 2
    assert caplog.text.count("bytes of replies unread") == 1  # the next line is due in an hour
    assert server.guard.unsent.used == 5_000_000
    for peer in peers:
        peer.writer.transport.abort()
    await server.wait_for_connections(0)
    assert server.guard.unsent.used == 0
