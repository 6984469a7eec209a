"""The guard: what the lane's protocol class refuses, closes and counts. Plain ASGI has none of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from http_peer import HEAD, WAIT, Peer, Running, ToyApp, request, serve
from millstream.config import Settings
from millstream.http import STREAM_HEAD, Handler, Request, Response
from millstream.transports.hosts import HostPolicy
from millstream.transports.lane import Lane, load_lane
from millstream.transports.lane.guarded import MAX_PIPELINE

Start = Callable[..., Awaitable[Running]]
PATHS = pytest.mark.parametrize("path", ["/echo", "/asgi"])
"""A hot endpoint, and one that only ASGI knows: the guard is the same."""


async def _echo(request: Request) -> Response:
    return Response(body=request.body)


class GuardApp(ToyApp):
    """`/asgi` is answered by the adapter only; the lane does not know it."""

    def __init__(self, routes: dict[tuple[str, str], Handler], settings: Settings) -> None:
        super().__init__(routes, settings, lane=True)
        lookup = self.__millstream_lane__.lookup
        self.__millstream_lane__ = Lane(
            lambda method, path: None if path == b"/asgi" else lookup(method, path),
            settings=settings,
            policy=self.__millstream_lane__.policy,
        )


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            more: dict[tuple[str, str], Handler] | None = None,
            *,
            config: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Running:
            routes = {("POST", "/echo"): _echo, ("POST", "/asgi"): _echo, ("GET", "/livez"): _echo} | (more or {})
            return await stack.enter_async_context(
                serve(GuardApp(routes, Settings(**settings)), lane=True, **(config or {}))
            )

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


# Time.


@pytest.mark.parametrize("data", [b"P", b"POST /echo HTTP/1.1\r\nHost: a\r\nX-Slow:"])
async def test_headers_that_do_not_come_are_408(start: Start, data: bytes) -> None:
    """Slowloris: a request line or header section has its time."""
    peer = await (await start(header_timeout=0.1)).connect()
    await peer.send(data)
    await refused(peer, 408)


async def test_a_silent_connection_is_closed(start: Start) -> None:
    """A connection that never asks costs a socket; empty lines do not count as asking."""
    peer = await (await start(header_timeout=0.1)).connect()
    await peer.send(b"\r\n\r\n")
    assert await peer.rest() == b""


async def test_an_idle_connection_is_closed_after_its_keep_alive_time(start: Start) -> None:
    """The sweep stands in for uvicorn's timer."""
    peer = await (await start(keep_alive=0.1)).connect()
    await peer.send(request(body=b"x") + request(path="/asgi", body=b"y"))
    assert [(await peer.reply())[2] for _ in range(2)] == [b"x", b"y"]
    assert await peer.rest() == b""


@PATHS
async def test_a_body_that_does_not_come_is_408(start: Start, path: str) -> None:
    """A slow body is as cheap an attack as slow headers."""
    peer = await (await start(body_timeout=0.1)).connect()
    await peer.send(b"POST %b HTTP/1.1\r\n%bContent-Length: 10\r\n\r\nabc" % (path.encode(), HEAD))
    await refused(peer, 408)


async def test_a_running_call_has_no_time_limit_of_the_guard(start: Start) -> None:
    """The peer owes nothing while we work: other connections are closed meanwhile, this one is not."""
    handler, began, go = held()
    server = await start({("POST", "/held"): handler}, header_timeout=0.1, body_timeout=0.1, keep_alive=0.1)
    peer = await server.connect()
    await peer.send(request(path="/held"))
    await asyncio.wait_for(began.wait(), WAIT)
    idle = await server.connect()
    assert await idle.rest() == b""
    go.set()
    assert (await peer.reply())[2] == b"held"


async def test_a_peer_that_does_not_read_is_cut(start: Start) -> None:
    """A stalled write holds memory; the stream's handler hears of it."""
    closed = asyncio.Event()

    async def pour(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(closed.set)
        sink.write(b"x" * 16_000_000)
        await sink.wait_closed()

    peer = await (await start({("POST", "/pour"): pour}, write_timeout=0.1)).connect(small_buffer=True)
    await peer.send(request(path="/pour"))
    await asyncio.wait_for(closed.wait(), WAIT)


async def test_a_peer_that_reads_slowly_is_not_cut(start: Start) -> None:
    """Only a peer that takes nothing at all is stalled."""
    body = b"x" * 4_000_000

    async def large(request: Request) -> Response:
        return Response(body=body)

    server = await start({("POST", "/large"): large}, write_timeout=0.4)
    peer = await server.connect(small_buffer=True)
    await peer.send(request(path="/large"))
    status, headers = await peer.head()
    got = 0
    while got < len(body):
        piece = await asyncio.wait_for(peer.reader.read(65536), WAIT)
        assert piece
        got += len(piece)
    assert (status, headers[b"content-length"]) == (200, b"4000000")


async def test_replies_that_are_not_read_stop_the_reading_of_requests(start: Start) -> None:
    """Else a peer that only writes would fill our write buffer."""
    calls = 0

    async def large(request: Request) -> Response:
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


# Size and shape.


@PATHS
async def test_more_than_a_hundred_headers_are_431(start: Start, path: str) -> None:
    """Our choice: 100 headers."""
    server = await start()
    peer = await server.connect()
    fields = b"".join(b"X-%d: y\r\n" % n for n in range(98))
    await peer.send(request(path=path, body=b"x", extra=fields))
    assert (await peer.reply())[0] == 200
    await peer.send(request(path=path, body=b"x", extra=fields + b"X-One-More: y\r\n"))
    await refused(peer, 431)


@PATHS
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_header_section_above_64_kib_is_431(start: Start, path: str, pieces: int) -> None:
    """Our choice, however it is cut."""
    peer = await (await start()).connect()
    data = request(path=path, extra=b"X-Large: " + b"y" * 70_000 + b"\r\n")
    size = len(data) // pieces + 1
    for start_ in range(0, len(data), size):
        await peer.send(data[start_ : start_ + size])
        await asyncio.sleep(0)
    await refused(peer, 431)


async def test_a_header_that_never_ends_is_431_long_before_it_fills_the_memory(start: Start) -> None:
    """The parser gives a header only when it is whole, so bytes are counted as they come: 12 MiB in one header."""
    server = await start()
    peer = await server.connect()
    peer.writer.write(b"POST /echo HTTP/1.1\r\n" + HEAD + b"X-Endless: ")
    sending = asyncio.create_task(_pour(peer, b"y" * 65536, 192))
    status, _, _ = await peer.reply()
    assert status == 431
    await asyncio.wait_for(sending, WAIT)


async def _pour(peer: Peer, piece: bytes, times: int) -> None:
    try:
        for _ in range(times):
            await peer.send(piece)
    except ConnectionError:
        return


@pytest.mark.parametrize("body", [b"3\r\nabc\r\n0\r\nX: ", b"3;x="])
async def test_trailers_and_chunk_extensions_without_end_are_431(start: Start, body: bytes) -> None:
    """They are counted as bytes that bring the body no further."""
    peer = await (await start()).connect()
    peer.writer.write(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    sending = asyncio.create_task(_pour(peer, b"y" * 65536, 10))
    assert (await peer.reply())[0] == 431
    await asyncio.wait_for(sending, WAIT)


@PATHS
async def test_trailers_are_not_headers(start: Start, path: str) -> None:
    """RFC 9110 §6.5.1; uvicorn alone appends them to the header list that the application sees."""
    seen: list[dict[bytes, bytes]] = []

    async def look(request: Request) -> Response:
        seen.append(request.headers)
        return Response()

    peer = await (await start({("POST", path): look})).connect()
    head = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path.encode(), HEAD)
    await peer.send(head + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\nHost: evil.com\r\n\r\n")
    assert (await peer.reply())[0] == 200
    assert seen == [{b"host": b"127.0.0.1", b"transfer-encoding": b"chunked"}]


async def test_a_target_above_8_kib_is_414(start: Start) -> None:
    """Our choice, whole or in pieces."""
    server = await start()
    for pieces in (1, 3):
        peer = await server.connect()
        data = b"GET /" + b"a" * 9000
        size = len(data) // pieces
        for at in range(0, len(data), size):
            await peer.send(data[at : at + size])
            await asyncio.sleep(0)
        await refused(peer, 414)


@pytest.mark.parametrize("target", [b"http://127.0.0.1", b"evil.com:443", b"/%ff/\xff"])
async def test_a_target_that_is_no_path_is_400(start: Start, target: bytes) -> None:
    """What uvicorn cannot make a scope of raises in its callback; the answer must not be silent or a 500."""
    peer = await (await start()).connect()
    await peer.send(b"OPTIONS " + target + b" HTTP/1.1\r\n" + HEAD + b"\r\n")
    await refused(peer, 400)


async def test_a_connect_request_is_400(start: Start) -> None:
    """We are no proxy."""
    peer = await (await start()).connect()
    await peer.send(b"CONNECT evil.com:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await refused(peer, 400)


async def test_an_upgrade_with_a_body_is_400(start: Start) -> None:
    """Request smuggling through upgrades."""
    peer = await (await start()).connect()
    extra = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    await peer.send(request(body=b"GET /", extra=extra))
    await refused(peer, 400)


async def test_an_upgrade_that_nobody_speaks_is_an_ordinary_request_and_the_last(start: Start) -> None:
    """RFC 9110 §7.8: a server may ignore Upgrade; what follows is not parsed, so the connection ends."""
    peer = await (await start()).connect()
    extra = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + extra + b"\r\n")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (200, b"close")
    assert await peer.rest() == b""


async def test_an_upgrade_behind_a_running_call_is_refused_after_its_reply(start: Start) -> None:
    """The socket cannot change hands while a reply is owed on it."""
    handler, began, go = held()
    peer = await (await start({("POST", "/held"): handler})).connect()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    upgrade = b"GET /ws HTTP/1.1\r\n" + HEAD + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n"
    await peer.send(request(path="/held") + upgrade)
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert (await peer.reply())[2] == b"held"
    await refused(peer, 400)


# Order: what comes behind a running call.


async def test_garbage_behind_a_running_call_is_answered_after_it(start: Start) -> None:
    """Replies keep the order of requests; what waited in between is answered too."""
    handler, began, go = held()
    peer = await (await start({("POST", "/held"): handler})).connect()
    good = request(path="/held") + request(body=b"second") + request(path="/asgi", body=b"third")
    await peer.send(good + b"\x00garbage\r\n\r\n" + request(body=b"never"))
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert [(await peer.reply())[2] for _ in range(3)] == [b"held", b"second", b"third"]
    await refused(peer, 400)


async def test_a_bad_body_behind_a_running_call_is_answered_after_it(start: Start) -> None:
    """A request that uvicorn has queued before its body came is dropped, not started."""
    handler, began, go = held()
    ran: list[bytes] = []

    async def record(request: Request) -> Response:
        ran.append(request.body)
        return Response()

    routes: dict[tuple[str, str], Handler] = {("POST", "/held"): handler, ("POST", "/asgi"): record}
    peer = await (await start(routes)).connect()
    bad = b"POST /asgi HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n"
    await peer.send(request(path="/held") + bad)
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert (await peer.reply())[2] == b"held"
    await refused(peer, 400)
    assert ran == []


async def test_garbage_in_the_body_of_an_answered_asgi_request_only_closes(start: Start) -> None:
    """A second reply to the same request would be read as the reply to the next."""
    peer = await (await start()).connect()
    await peer.send(b"POST /absent HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    assert (await peer.reply())[0] == 404
    await peer.send(b"not a size\r\n")
    assert await peer.rest() == b""


async def test_garbage_in_the_body_of_a_half_answered_asgi_request_only_closes() -> None:
    """The same in the middle of its reply; the application sees a disconnect."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"he", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with serve(app, lane=True) as server:
        peer = await server.connect()
        await peer.send(b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert (await peer.head())[0] == 200
        await peer.send(b"not a size\r\n")
        assert await peer.rest() == b"he"
        await asyncio.wait_for(left.wait(), WAIT)


async def test_garbage_in_the_body_of_a_started_asgi_request_is_400(start: Start) -> None:
    """uvicorn starts its application before the body came; the application sees a disconnect."""
    peer = await (await start()).connect()
    await peer.send(b"POST /asgi HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await peer.send(b"not a size\r\n")
    await refused(peer, 400)


async def test_two_thousand_requests_in_one_chunk_are_not_all_kept(start: Start) -> None:
    """Those up to the cap are answered in order, then the connection ends."""
    handler, _, go = held()
    peer = await (await start({("POST", "/held"): handler})).connect()
    peer.writer.write(request(path="/held") + b"".join(request(body=b"%d" % n) for n in range(2000)))
    go.set()
    replies = [await peer.reply() for _ in range(MAX_PIPELINE + 1)]
    assert [reply[2] for reply in replies] == [b"held", *(b"%d" % n for n in range(MAX_PIPELINE))]
    assert replies[-1][1][b"connection"] == b"close"
    assert await peer.rest() == b""


async def test_after_a_refusal_nothing_of_its_chunk_is_served(start: Start) -> None:
    """Parser callbacks go on for the chunk; they are not believed."""
    ran: list[bytes] = []

    async def record(request: Request) -> Response:
        ran.append(request.body)
        return Response()

    peer = await (await start({("POST", "/record"): record, ("POST", "/asgi"): record})).connect()
    bad = b"POST /echo HTTP/1.1\r\n" + HEAD + HEAD + b"Content-Length: 0\r\n\r\n"
    too_many = request(extra=b"".join(b"X-%d: y\r\n" % n for n in range(200)))
    await peer.send(too_many + bad + request(path="/record") + request(path="/asgi"))
    await refused(peer, 431)
    assert ran == []


# Hosts, connections, counters.


@PATHS
@pytest.mark.parametrize("hosts", [b"", HEAD + HEAD, HEAD + b"Host: localhost\r\n", b"Host: a b\r\n", b"Host:\r\n"])
async def test_a_request_needs_exactly_one_valid_host(start: Start, path: str, hosts: bytes) -> None:
    """RFC 9112 §3.2; uvicorn with httptools answers 200 to none and to two."""
    peer = await (await start()).connect()
    await peer.send(b"POST " + path.encode() + b" HTTP/1.1\r\n" + hosts + b"Content-Length: 0\r\n\r\n")
    assert (await peer.reply())[0] == 400


async def test_a_probe_needs_no_host(start: Start) -> None:
    """Load balancers probe with HTTP/1.0 and no Host."""
    peer = await (await start()).connect()
    await peer.send(b"GET /livez HTTP/1.0\r\n\r\n")
    assert (await peer.reply())[0] == 200


async def test_connections_above_the_cap_are_503_and_told_when_to_come_back(start: Start) -> None:
    """Our choice: refused politely, and room is made when one leaves."""
    server = await start(max_connections=2)
    first, second = await server.connect(), await server.connect()
    for peer in (first, second):
        await peer.send(request(body=b"x"))
        assert (await peer.reply())[0] == 200
    third = await server.connect()
    status, headers, _ = await third.reply()
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"1", b"close")
    assert await third.rest() == b""
    third.close()
    first.close()
    await server.left(1)
    fourth = await server.connect()
    await fourth.send(request(body=b"x"))
    assert (await fourth.reply())[0] == 200


async def test_connections_of_one_address_have_a_cap_of_their_own(start: Start) -> None:
    """Off by default: behind a proxy all clients share an address."""
    server = await start(max_connections_per_address=1)
    first = await server.connect()
    await first.send(request(body=b"x"))
    await first.reply()
    second = await server.connect()
    await refused(second, 503)
    first.close()
    second.close()
    await server.left(0)
    third = await server.connect()
    await third.send(request(body=b"x"))
    assert (await third.reply())[0] == 200


async def test_a_crowd_above_the_cap_is_dropped_without_an_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals are polite only as far as they cost little."""
    monkeypatch.setattr("millstream.transports.lane.guard._LINGERING", 0)
    server = await start(max_connections=1)
    first = await server.connect()
    await first.send(request(body=b"x"))
    await first.reply()
    assert await (await server.connect()).rest() == b""


async def test_a_refused_peer_that_does_not_leave_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read its refusal, but not for ever."""
    monkeypatch.setattr("millstream.transports.lane.guard._LINGER", 0.0)
    server = await start(header_timeout=0.1)
    peer = await server.connect()
    await peer.send(b"garbage\r\n\r\n")
    await refused(peer, 400)
    await server.left(0)


async def test_a_websocket_is_handed_over_and_still_counts(start: Start) -> None:
    """Its connection stays in the server's set, and so under the caps; the guard no longer judges it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    lane = Lane(
        lambda method, path: None,
        settings=Settings(max_connections_per_address=1, header_timeout=0.1, keep_alive=0.1),
        policy=HostPolicy(),
    )
    app.__millstream_lane__ = lane  # type: ignore[attr-defined]
    async with serve(app, lane=True, ws="websockets-sansio") as server:
        async with connect(f"ws://127.0.0.1:{server.port}/ws") as socket:
            await socket.send("one")
            assert await asyncio.wait_for(socket.recv(), WAIT) == "one"
            guard = vars(server.state)["millstream_guard"]
            guard._sweep()
            await refused(await server.connect(), 503)
            await socket.send("two")
            assert await asyncio.wait_for(socket.recv(), WAIT) == "two"
        await server.left(0)
        guard._sweep()
        peer = await server.connect()
        await peer.send(b"garbage\r\n\r\n")
        await refused(peer, 400)


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

    lane = Lane(fail, settings=Settings(), policy=GuardApp({}, Settings()).adapter.policy)
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
        ("POST", "/echo"): _echo,
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


async def test_the_access_hook_sees_replies_and_streams() -> None:
    """Our own access log hangs there."""
    seen: list[tuple[str, int | None]] = []

    async def stream(request: Request) -> None:
        request.open(200, STREAM_HEAD)

    app = GuardApp({("POST", "/echo"): _echo, ("POST", "/stream"): stream}, Settings())
    app.__millstream_lane__.access = lambda request, reply: seen.append((request.path, reply and reply.status))
    async with serve(app, lane=True) as server:
        peer = await server.connect()
        for path in ("/echo", "/stream"):
            await peer.send(request(path=path))
            await peer.reply()
        await peer.send(request(body=b"x"))
        await peer.reply()
    assert seen[:2] == [("/echo", 200), ("/stream", None)]
