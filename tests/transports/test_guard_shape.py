"""The guard: the size and shape of requests, and the order of replies and refusals."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from guard_peer import Start, guarded, held, refused
from http_peer import HEAD, WAIT, Peer, request, serve
from millstream._http.lane.guarded import MAX_PIPELINE
from millstream._http.message import Handler, Request, Response

PATHS = pytest.mark.parametrize("path", ["/echo", "/asgi"])
"""A hot endpoint, and one that only ASGI knows: the guard is the same."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with guarded() as start:
        yield start


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


async def test_an_upgrade_that_nobody_speaks_is_an_ordinary_request_and_the_last(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 9110 §7.8: a server may ignore Upgrade; what follows is not parsed, so the connection ends. Any peer could
    fill the log with lines of uvicorn's that told the operator to install a library.
    """
    peer = await (await start()).connect()
    extra = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + extra + b"\r\n")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (200, b"close")
    assert await peer.rest() == b""
    assert not caplog.records


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
    handler, began, go = held()
    peer = await (await start({("POST", "/held"): handler})).connect()
    peer.writer.write(request(path="/held") + b"".join(request(body=b"%d" % n) for n in range(2000)))
    await asyncio.wait_for(began.wait(), WAIT)
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
