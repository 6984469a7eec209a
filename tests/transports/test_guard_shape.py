import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cases import for_each
from guard_peer import Start, expect_refusal, make_blocking_handler, run_guarded_servers
from http_messages import Handler, HttpRequest, Response
from http_peer import HEAD, WAIT, Peer, request

MAX_PIPELINE = 64
"""Maximum number of pipelined requests that wait for one."""

PATHS = pytest.mark.parametrize("path", ["/echo", "/exact"])
"""A hot endpoint, and one that the fast head reader does not find: the limits are the same."""


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a guarded server; it ends with the test."""
    async with run_guarded_servers() as start:
        yield start


# Size and shape.


@PATHS
async def test_more_than_a_hundred_headers_get_431(start: Start, path: str) -> None:
    server = await start()
    peer = await server.connect()
    fields = b"".join(b"X-%d: y\r\n" % n for n in range(98))
    await peer.send(request(path=path, body=b"x", extra=fields))
    assert (await peer.reply())[0] == 200
    await peer.send(request(path=path, body=b"x", extra=fields + b"X-One-More: y\r\n"))
    await expect_refusal(peer, 431)


@PATHS
@for_each("pieces", [1, 7])
async def test_header_section_above_64_kib_gets_431(start: Start, path: str, pieces: int) -> None:
    peer = await (await start()).connect()
    data = request(path=path, extra=b"X-Large: " + b"y" * 70_000 + b"\r\n")
    size = len(data) // pieces + 1
    for start_ in range(0, len(data), size):
        await peer.send(data[start_ : start_ + size])
        await asyncio.sleep(0)
    await expect_refusal(peer, 431)


async def test_endless_header_gets_431(start: Start) -> None:
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


@for_each("body", [b"3\r\nabc\r\n0\r\nX: ", b"3;x="])
async def test_endless_trailers_and_chunk_extensions_get_431(start: Start, body: bytes) -> None:
    peer = await (await start()).connect()
    peer.writer.write(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    sending = asyncio.create_task(_pour(peer, b"y" * 65536, 10))
    assert (await peer.reply())[0] == 431
    await asyncio.wait_for(sending, WAIT)


@PATHS
async def test_trailers_are_not_headers(start: Start, path: str) -> None:
    """RFC 9110 §6.5.1."""
    seen: list[dict[bytes, bytes]] = []

    async def look(request: HttpRequest) -> Response:
        seen.append(request.headers)
        return Response()

    peer = await (await start({("POST", path): look})).connect()
    head = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path.encode(), HEAD)
    await peer.send(head + b"1\r\na\r\n0\r\nAuthorization: Bearer x\r\nHost: evil.com\r\n\r\n")
    assert (await peer.reply())[0] == 200
    assert seen == [{b"host": b"127.0.0.1", b"transfer-encoding": b"chunked"}]


async def test_target_above_8_kib_gets_414(start: Start) -> None:
    server = await start()
    for pieces in (1, 3):
        peer = await server.connect()
        data = b"GET /" + b"a" * 9000
        size = len(data) // pieces
        for at in range(0, len(data), size):
            await peer.send(data[at : at + size])
            await asyncio.sleep(0)
        await expect_refusal(peer, 414)


@for_each("target", [b"http://127.0.0.1", b"evil.com:443", b"/%ff/\xff"])
async def test_targets_must_be_paths(start: Start, target: bytes) -> None:
    peer = await (await start()).connect()
    await peer.send(b"OPTIONS " + target + b" HTTP/1.1\r\n" + HEAD + b"\r\n")
    await expect_refusal(peer, 400)


async def test_connect_requests_get_400(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(b"CONNECT evil.com:443 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await expect_refusal(peer, 400)


async def test_upgrade_with_a_body_gets_400(start: Start) -> None:
    peer = await (await start()).connect()
    extra = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    await peer.send(request(body=b"GET /", extra=extra))
    await expect_refusal(peer, 400)


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@PATHS
async def test_http_2_upgrade_is_ignored(start: Start, path: str) -> None:
    """Regression: Java's HttpClient and `curl --http2` request it, and got 400 if the request had a body (RFC 9110
    §7.8).
    """
    peer = await (await start()).connect()
    asked = request(path=path, body=b"one", extra=H2C) + request(path=path, extra=H2C)
    await peer.send(asked + request(path=path, body=b"two"))
    replies = [await peer.reply() for _ in range(3)]
    assert [(status, body) for status, _, body in replies] == [(200, b"one"), (200, b""), (200, b"two")]
    assert all(b"connection" not in headers for _, headers, _ in replies)


async def test_unserved_websocket_is_treated_as_a_final_request(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    peer = await (await start()).connect()
    extra = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + extra + b"\r\n" + request(body=b"behind it"))
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (200, b"close")
    assert await peer.rest() == b""
    assert not caplog.records


async def test_upgrade_after_a_running_call_is_rejected_after_the_reply(start: Start) -> None:
    handler, began, go = make_blocking_handler()

    async def no_socket(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("The handshake was refused.")

    peer = await (await start({("POST", "/held"): handler}, options={"websocket": no_socket})).connect()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    upgrade = b"GET /ws HTTP/1.1\r\n" + HEAD + upgrade + b"Sec-WebSocket-Version: 13\r\n\r\n"
    await peer.send(request(path="/held") + upgrade)
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert (await peer.reply())[2] == b"held"
    await expect_refusal(peer, 400)


# Order: what comes behind a running call.


async def test_garbage_after_a_running_call_is_rejected_after_the_reply(start: Start) -> None:
    handler, began, go = make_blocking_handler()
    peer = await (await start({("POST", "/held"): handler})).connect()
    good = request(path="/held") + request(body=b"second") + request(path="/exact", body=b"third")
    await peer.send(good + b"\x00garbage\r\n\r\n" + request(body=b"never"))
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert [(await peer.reply())[2] for _ in range(3)] == [b"held", b"second", b"third"]
    await expect_refusal(peer, 400)


async def test_invalid_body_after_a_running_call_is_rejected_after_the_reply(start: Start) -> None:
    handler, began, go = make_blocking_handler()
    ran: list[bytes] = []

    async def record(request: HttpRequest) -> Response:
        ran.append(request.body)
        return Response()

    routes: dict[tuple[str, str], Handler] = {("POST", "/held"): handler, ("POST", "/exact"): record}
    peer = await (await start(routes)).connect()
    bad = b"POST /exact HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n"
    await peer.send(request(path="/held") + bad)
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    assert (await peer.reply())[2] == b"held"
    await expect_refusal(peer, 400)
    assert ran == []


async def test_garbage_in_a_chunked_body_gets_400(start: Start) -> None:
    server = await start()
    for path in (b"/exact", b"/absent"):
        peer = await server.connect()
        await peer.send(b"POST %b HTTP/1.1\r\n" % path + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        await peer.send(b"not a size\r\n")
        await expect_refusal(peer, 400)


async def test_pipelined_requests_in_one_segment_are_bounded(start: Start) -> None:
    handler, began, go = make_blocking_handler()
    peer = await (await start({("POST", "/held"): handler})).connect()
    peer.writer.write(request(path="/held") + b"".join(request(body=b"%d" % n) for n in range(2000)))
    await asyncio.wait_for(began.wait(), WAIT)
    go.set()
    replies = [await peer.reply() for _ in range(MAX_PIPELINE + 1)]
    assert [reply[2] for reply in replies] == [b"held", *(b"%d" % n for n in range(MAX_PIPELINE))]
    assert replies[-1][1][b"connection"] == b"close"
    assert await peer.rest() == b""


async def test_bytes_after_a_rejection_are_not_served(start: Start) -> None:
    ran: list[bytes] = []

    async def record(request: HttpRequest) -> Response:
        ran.append(request.body)
        return Response()

    peer = await (await start({("POST", "/record"): record, ("POST", "/exact"): record})).connect()
    bad = b"POST /echo HTTP/1.1\r\n" + HEAD + HEAD + b"Content-Length: 0\r\n\r\n"
    too_many = request(extra=b"".join(b"X-%d: y\r\n" % n for n in range(200)))
    await peer.send(too_many + bad + request(path="/record") + request(path="/exact"))
    await expect_refusal(peer, 431)
    assert ran == []
