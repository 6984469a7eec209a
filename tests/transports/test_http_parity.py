"""One suite for both ways to the same handlers: the lane, and plain uvicorn through ASGI."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from http_peer import HEAD, WAIT, Running, ToyApp, request, serve
from millstream.config import Settings
from millstream.http import JSON_HEAD, STREAM_HEAD, Handler, Request, Response

Start = Callable[..., Awaitable[Running]]


async def _echo(request: Request) -> Response:
    return Response(body=request.body)


async def _slow(request: Request) -> Response:
    await asyncio.sleep(0)
    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0.001))
    return Response(body=request.body)


async def _describe(request: Request) -> Response:
    text = f"{request.method} {request.path} {request.query.decode()} {request.peer} {request.scheme}"
    return Response(body=text.encode())


async def _stream(request: Request) -> None:
    sink = request.open(200, STREAM_HEAD)
    sink.write(b"one")
    await asyncio.sleep(0)
    sink.write(b"")
    sink.write(b"two")
    await sink.drain()
    sink.close()
    sink.close()
    sink.write(b"after the end")


async def _fail(request: Request) -> Response:
    raise ValueError("the secret")


async def _fail_late(request: Request) -> Response:
    request.open(200, STREAM_HEAD).write(b"one")
    await asyncio.sleep(0)
    raise ValueError("the secret")


async def _empty(request: Request) -> Response:
    return Response(status=204, head=b"")


async def _nothing(request: Request) -> None:
    return None


ROUTES: dict[tuple[str, str], Handler] = {
    ("POST", "/echo"): _echo,
    ("HEAD", "/echo"): _echo,
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


@pytest.fixture(params=["lane", "asgi"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start a server by one of the two ways; it ends with the test."""
    lane = request.param == "lane"
    opened: list[Any] = []

    async def start(more: dict[tuple[str, str], Handler] | None = None, **settings: Any) -> Running:
        app = ToyApp(ROUTES | (more or {}), Settings(**settings), lane=lane)
        context = serve(app, lane=lane)
        opened.append(context)
        return await context.__aenter__()

    yield start
    for context in opened:
        await context.__aexit__(None, None, None)


async def test_replies_come_on_one_connection_one_after_the_other(start: Start) -> None:
    """RFC 9112 §9.3: a connection persists."""
    peer = await (await start()).connect()
    for path in ("/echo", "/slow", "/echo"):
        await peer.send(request(path=path, body=b"hello"))
        status, headers, body = await peer.reply()
        assert (status, body) == (200, b"hello")
        assert headers[b"content-type"] == b"application/json"
        assert b"connection" not in headers


async def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    """RFC 9112 §9.3.2, across plain replies, slow ones, streams and requests that no handler takes."""
    peer = await (await start()).connect()
    paths = ["/slow", "/echo", "/absent", "/stream", "/echo", "/fail", "/slow", "/absent"]
    await peer.send(b"".join(request(path=path, body=path.encode()) for path in paths))
    replies = [await peer.reply() for _ in paths]
    assert [reply[0] for reply in replies] == [200, 200, 404, 200, 200, 500, 200, 404]
    assert [reply[2] for reply in replies if reply[0] == 200] == [b"/slow", b"/echo", b"onetwo", b"/echo", b"/slow"]


async def test_a_request_may_come_byte_by_byte(start: Start) -> None:
    """TCP has no messages."""
    peer = await (await start()).connect()
    for byte in request(body=b"hello") + request(path="/slow", body=b"again"):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await peer.reply())[2] == b"hello"
    assert (await peer.reply())[2] == b"again"


async def test_a_handler_sees_method_path_query_and_peer(start: Start) -> None:
    """Our own interface: the same `Request` by both ways."""
    peer = await (await start()).connect()
    await peer.send(b"GET /describe?a=1&b=%20 HTTP/1.1\r\n" + HEAD + b"\r\n")
    assert (await peer.reply())[2] == b"GET /describe a=1&b=%20 127.0.0.1 http"


async def test_an_escaped_path_reaches_the_same_handler(start: Start) -> None:
    """RFC 3986 §6.2.2.2: %65 is e."""
    peer = await (await start()).connect()
    await peer.send(request(path="/%65cho", body=b"hello"))
    assert (await peer.reply())[2] == b"hello"


async def test_a_large_body_comes_back_whole(start: Start) -> None:
    """Bodies up to the cap are accepted, and large replies are not cut."""
    body = bytes(range(256)) * 8192
    peer = await (await start()).connect()
    await asyncio.gather(peer.send(request(body=body)), asyncio.sleep(0))
    assert (await peer.reply())[2] == body


async def test_a_chunked_body_is_joined(start: Start) -> None:
    """RFC 9112 §7.1, with chunk extensions."""
    peer = await (await start()).connect()
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    await peer.send(head + b"3\r\nabc\r\n1;ext=1\r\nd\r\n")
    await peer.send(b"2\r\nef\r\n0\r\n\r\n")
    assert (await peer.reply())[2] == b"abcdef"


async def test_a_declared_body_above_the_cap_is_413_before_it_is_sent(start: Start) -> None:
    """Our choice: 4 MiB by default, refused by its Content-Length."""
    peer = await (await start(max_body=10)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 1073741824\r\n\r\n")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (413, b"close")
    assert await peer.rest() == b""


async def test_an_endless_chunked_body_is_413_at_the_cap(start: Start) -> None:
    """Our choice: counted while it comes."""
    peer = await (await start(max_body=10)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        await peer.send(b"5\r\nabcde\r\n")
    assert (await peer.reply())[0] == 413
    assert await peer.rest() == b""


async def test_a_body_that_does_not_come_is_408(start: Start) -> None:
    """Our choice: a body has its time, with the lane and without."""
    peer = await (await start(body_timeout=0.1)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 10\r\n\r\nabc")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (408, b"close")
    assert await peer.rest() == b""


async def test_a_path_that_no_handler_takes_is_404(start: Start) -> None:
    """And the connection lives on."""
    peer = await (await start()).connect()
    await peer.send(request(path="/absent", body=b"x") + request(body=b"hello"))
    assert (await peer.reply())[0] == 404
    assert (await peer.reply())[2] == b"hello"


async def test_head_has_the_headers_of_the_reply_and_no_body(start: Start) -> None:
    """RFC 9110 §9.3.2."""
    peer = await (await start()).connect()
    await peer.send(request("HEAD", body=b"hello"))
    status, headers, _ = await peer.reply(head_only=True)
    assert (status, headers[b"content-length"]) == (200, b"5")
    await peer.send(request("HEAD", "/stream"))
    assert (await peer.reply(head_only=True))[0] == 200
    await peer.send(request(body=b"next"))
    assert (await peer.reply())[2] == b"next"


async def test_a_204_has_no_content_length(start: Start) -> None:
    """RFC 9110 §8.6."""
    peer = await (await start()).connect()
    await peer.send(request(path="/empty") + request(body=b"next"))
    status, headers, _ = await peer.reply()
    assert (status, b"content-length" in headers) == (204, False)
    assert (await peer.reply())[2] == b"next"


async def test_a_stream_is_chunked_and_ends_properly(start: Start) -> None:
    """RFC 9112 §7.1; empty writes must not end it."""
    peer = await (await start()).connect()
    await peer.send(request(path="/stream") + request(body=b"next"))
    status, headers, body = await peer.reply()
    assert (status, body, headers[b"content-type"]) == (200, b"onetwo", b"text/event-stream")
    assert (await peer.reply())[2] == b"next"


@pytest.mark.parametrize("path", ["/fail", "/nothing"])
async def test_a_handler_that_fails_shows_only_an_identifier(
    start: Start, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Our choice: what it raised stands in the log under that identifier."""
    peer = await (await start()).connect()
    await peer.send(request(path=path))
    status, _, body = await peer.reply()
    identifier = body.decode().split()[-1].rstrip(".")
    assert status == 500
    assert b"secret" not in body
    assert len(identifier) == 16
    assert identifier in caplog.text


async def test_a_handler_that_fails_in_its_stream_cuts_it(start: Start) -> None:
    """A broken stream must not look like a whole one: there is no final chunk."""
    peer = await (await start()).connect()
    await peer.send(request(path="/fail-late"))
    status, _ = await peer.head()
    rest = await peer.rest()
    assert status == 200
    assert not rest.endswith(b"0\r\n\r\n")


async def test_a_second_stream_for_one_request_is_an_error(start: Start) -> None:
    """One request has one reply."""
    raised = asyncio.Event()

    async def twice(request: Request) -> None:
        request.open(200, STREAM_HEAD)
        with pytest.raises(RuntimeError):
            request.open(200, STREAM_HEAD)
        raised.set()

    peer = await (await start({("POST", "/twice"): twice})).connect()
    await peer.send(request(path="/twice"))
    assert (await peer.reply())[2] == b""
    assert raised.is_set()


async def test_a_peer_that_leaves_ends_its_stream(start: Start) -> None:
    """`Sink.on_close` is called once, at once when it is too late, and writes do nothing from then on."""
    closed: asyncio.Queue[str] = asyncio.Queue()

    async def endless(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(lambda: closed.put_nowait("first"))
        sink.write(b"hello")
        await sink.wait_closed()
        sink.write(b"nobody reads this")
        await sink.drain()
        sink.on_close(lambda: closed.put_nowait("late"))
        assert sink.closed

    peer = await (await start({("POST", "/endless"): endless})).connect()
    await peer.send(request(path="/endless"))
    await peer.head()
    assert await peer.chunk() == b"hello"
    peer.close()
    assert [await asyncio.wait_for(closed.get(), WAIT) for _ in range(2)] == ["first", "late"]
    assert closed.empty()


@pytest.mark.parametrize("streams", [False, True])
async def test_a_peer_that_leaves_cancels_a_handler_that_wants_it(start: Start, streams: bool) -> None:
    """2026-07-28: a disconnect is a cancel."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def work(request: Request) -> None:
        request.cancel_on_disconnect = True
        if streams:
            request.open(200, STREAM_HEAD).write(b"hello")
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    await asyncio.wait_for(ended.wait(), WAIT)
    other = await server.connect()
    await other.send(request(body=b"alive"))
    assert (await other.reply())[2] == b"alive"
    assert server.state.tasks == set()


async def test_a_peer_that_leaves_does_not_cancel_a_handler_of_its_own_right(start: Start) -> None:
    """A handshake-era call belongs to the server, not to the connection."""
    began, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(request: Request) -> Response:
        began.set()
        await go.wait()
        ended.set()
        return Response()

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    other = await server.connect()
    await other.send(request(path="/slow"))
    await other.reply()
    go.set()
    await asyncio.wait_for(ended.wait(), WAIT)


async def test_a_stream_opened_after_the_peer_left_is_closed(start: Start) -> None:
    """Nobody would ever tell the handler otherwise."""
    began, go = asyncio.Event(), asyncio.Event()
    states: asyncio.Queue[bool] = asyncio.Queue()

    async def work(request: Request) -> None:
        began.set()
        await go.wait()
        sink = request.open(200, STREAM_HEAD)
        sink.write(b"nobody reads this")
        states.put_nowait(sink.closed)

    server = await start({("POST", "/work"): work})
    peer = await server.connect()
    await peer.send(request(path="/work"))
    await asyncio.wait_for(began.wait(), WAIT)
    peer.close()
    other = await server.connect()
    await other.send(request(path="/slow"))
    await other.reply()
    go.set()
    assert await asyncio.wait_for(states.get(), WAIT)


async def test_a_writer_that_drains_is_held_back_by_a_slow_reader(start: Start) -> None:
    """`drain` waits for the peer; nothing is lost."""
    piece = b"x" * 65536

    async def pour(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        for _ in range(64):
            sink.write(piece)
            await sink.drain()

    peer = await (await start({("POST", "/pour"): pour})).connect(small_buffer=True)
    await peer.send(request(path="/pour"))
    assert (await peer.reply())[2] == piece * 64


async def test_a_reader_too_far_behind_is_cut(start: Start) -> None:
    """Every queue is bounded; who does not read is cut, and the stream does not end properly."""
    cut = asyncio.Event()

    async def flood(request: Request) -> None:
        sink = request.open(200, STREAM_HEAD)
        sink.on_close(cut.set)
        while not sink.closed:
            sink.write(b"x" * 65536)
            await asyncio.sleep(0)

    peer = await (await start({("POST", "/flood"): flood}, stream_buffer=100_000)).connect(small_buffer=True)
    await peer.send(request(path="/flood"))
    await asyncio.wait_for(cut.wait(), WAIT)


async def test_connection_close_is_honoured(start: Start) -> None:
    """RFC 9112 §9.6."""
    peer = await (await start()).connect()
    await peer.send(request(body=b"hello", extra=b"Connection: close\r\n"))
    status, headers, body = await peer.reply()
    assert (status, headers[b"connection"], body) == (200, b"close", b"hello")
    assert await peer.rest() == b""


async def test_an_http_1_0_request_is_answered_and_closed(start: Start) -> None:
    """RFC 9112 §9.3: no persistence without asking."""
    peer = await (await start()).connect()
    await peer.send(b"POST /echo HTTP/1.0\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello")
    status, headers, body = await peer.reply()
    assert (status, headers[b"connection"], body) == (200, b"close", b"hello")
    assert await peer.rest() == b""


async def test_expect_100_continue_is_answered_before_the_body(start: Start) -> None:
    """RFC 9110 §10.1.1."""
    peer = await (await start()).connect()
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    await peer.send(head)
    assert await peer.line() == b"HTTP/1.1 100 Continue"
    assert await peer.line() == b""
    await peer.send(b"hello")
    assert (await peer.reply())[2] == b"hello"


async def test_expect_100_continue_behind_a_running_call_waits_for_its_reply(start: Start) -> None:
    """An interim reply must not come in the middle of another one."""
    peer = await (await start()).connect()
    await peer.send(request(path="/slow", body=b"first"))
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    await peer.send(head)
    assert (await peer.reply())[2] == b"first"
    assert await peer.line() == b"HTTP/1.1 100 Continue"
    assert await peer.line() == b""
    await peer.send(b"hello")
    assert (await peer.reply())[2] == b"hello"


async def test_a_host_that_is_not_served_is_421_and_names_the_setting(start: Start) -> None:
    """DNS rebinding: names have to be listed."""
    peer = await (await start()).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 1\r\n\r\nx" + request(body=b"next"))
    status, _, body = await peer.reply()
    assert status == 421
    assert b"allowed_hosts" in body
    assert (await peer.reply())[2] == b"next"


async def test_probes_may_use_any_host(start: Start) -> None:
    """Health checks call by whatever name they have."""
    peer = await (await start()).connect()
    await peer.send(b"GET /livez HTTP/1.1\r\nHost: pod-7.internal\r\n\r\n")
    assert (await peer.reply())[0] == 204


async def test_a_foreign_origin_is_403_and_an_allowed_one_gets_cors_headers(start: Start) -> None:
    """Origin is checked for every request; replies and streams to an allowed one can be read by its page."""
    peer = await (await start(allowed_origins=("https://app.example.com",))).connect()
    await peer.send(request(body=b"x", extra=b"Origin: https://evil.com\r\n"))
    status, _, body = await peer.reply()
    assert status == 403
    assert b"allowed_origins" in body
    for path in ("/echo", "/stream"):
        await peer.send(request(path=path, body=b"x", extra=b"Origin: https://app.example.com\r\n"))
        status, headers, _ = await peer.reply()
        assert (status, headers[b"access-control-allow-origin"]) == (200, b"https://app.example.com")
        assert b"mcp-session-id" in headers[b"access-control-expose-headers"]


async def test_a_preflight_is_answered_with_the_headers_it_asks_for(start: Start) -> None:
    """Fetch standard, CORS preflight; parameter headers have names of the user's choice."""
    peer = await (await start({("OPTIONS", "/echo"): _echo})).connect()
    extra = (
        b"Origin: http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: content-type, mcp-param-region\r\n"
    )
    await peer.send(request("OPTIONS", extra=extra))
    status, headers, _ = await peer.reply()
    assert status == 204
    assert headers[b"access-control-allow-headers"] == b"content-type, mcp-param-region"
    assert b"POST" in headers[b"access-control-allow-methods"]


async def test_a_reply_head_of_the_handler_stands_in_the_reply(start: Start) -> None:
    """Handlers give finished header lines."""

    async def custom(request: Request) -> Response:
        return Response(body=b"{}", status=202, head=JSON_HEAD + b"mcp-session-id: abc\r\nx-two: 1\r\n")

    peer = await (await start({("POST", "/custom"): custom})).connect()
    await peer.send(request(path="/custom"))
    status, headers, body = await peer.reply()
    assert (status, body) == (202, b"{}")
    assert (headers[b"mcp-session-id"], headers[b"x-two"]) == (b"abc", b"1")
