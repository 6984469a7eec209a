import asyncio
from collections.abc import AsyncIterator
from itertools import count

import pytest

from http_messages import HttpRequest, Response
from http_peer import HEAD, request
from parity_peer import Start, echo, parity


@pytest.fixture(params=["own", "asgi"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start servers by one of the two ways; they end with the test."""
    async with parity(request.param) as start:
        yield start


async def test_keep_alive_replies_come_in_order(start: Start) -> None:
    """RFC 9112 §9.3."""
    peer = await (await start()).connect()
    for path in ("/echo", "/slow", "/echo"):
        await peer.send(request(path=path, body=b"hello"))
        status, headers, body = await peer.reply()
        assert (status, body) == (200, b"hello")
        assert headers[b"content-type"] == b"application/json"
        assert b"connection" not in headers


async def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    """RFC 9112 §9.3.2."""
    peer = await (await start()).connect()
    paths = ["/slow", "/echo", "/absent", "/stream", "/echo", "/fail", "/slow", "/absent"]
    await peer.send(b"".join(request(path=path, body=path.encode()) for path in paths))
    replies = [await peer.reply() for _ in paths]
    assert [reply[0] for reply in replies] == [200, 200, 404, 200, 200, 500, 200, 404]
    assert [reply[2] for reply in replies if reply[0] == 200] == [b"/slow", b"/echo", b"onetwo", b"/echo", b"/slow"]


async def test_requests_may_arrive_byte_by_byte(start: Start) -> None:
    peer = await (await start()).connect()
    for byte in request(body=b"hello") + request(path="/slow", body=b"again"):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await peer.reply())[2] == b"hello"
    assert (await peer.reply())[2] == b"again"


async def test_handlers_see_method_path_query_and_peer(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(b"GET /describe?a=1&b=%20 HTTP/1.1\r\n" + HEAD + b"\r\n")
    assert (await peer.reply())[2] == b"GET /describe a=1&b=%20 127.0.0.1 http"


async def test_escaped_paths_reach_the_same_handler(start: Start) -> None:
    """RFC 3986 §6.2.2.2."""
    peer = await (await start()).connect()
    await peer.send(request(path="/%65cho", body=b"hello"))
    assert (await peer.reply())[2] == b"hello"


async def test_large_bodies_round_trip(start: Start) -> None:
    body = bytes(range(256)) * 8192
    peer = await (await start()).connect()
    await asyncio.gather(peer.send(request(body=body)), asyncio.sleep(0))
    assert (await peer.reply())[2] == body


async def test_chunked_bodies_are_joined(start: Start) -> None:
    """RFC 9112 §7.1."""
    peer = await (await start()).connect()
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    await peer.send(head + b"3\r\nabc\r\n1;ext=1\r\nd\r\n")
    await peer.send(b"2\r\nef\r\n0\r\n\r\n")
    assert (await peer.reply())[2] == b"abcdef"


async def test_declared_oversized_body_gets_413_before_it_is_sent(start: Start) -> None:
    peer = await (await start(max_body=10)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 1073741824\r\n\r\n")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (413, b"close")
    assert await peer.rest() == b""


_LIMITS = count(1010)


async def test_oversized_bodies_have_one_line_in_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    limit = next(_LIMITS)  # the first body over each limit is logged
    server = await start(max_body=limit)
    for _ in range(3):
        peer = await server.connect()
        await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 1073741824\r\n\r\n")
        assert (await peer.reply())[0] == 413
    (line,) = [each for each in caplog.messages if "max_body" in each]
    assert f"more than {limit:,} bytes" in line


async def test_endless_chunked_body_gets_413_at_the_cap(start: Start) -> None:
    peer = await (await start(max_body=10)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        await peer.send(b"5\r\nabcde\r\n")
    assert (await peer.reply())[0] == 413
    assert await peer.rest() == b""


async def test_missing_body_gets_408(start: Start) -> None:
    peer = await (await start(body_timeout=0.1)).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\n" + HEAD + b"Content-Length: 10\r\n\r\nabc")
    status, headers, _ = await peer.reply()
    assert (status, headers[b"connection"]) == (408, b"close")
    assert await peer.rest() == b""


async def test_unknown_paths_get_404(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(request(path="/absent", body=b"x") + request(body=b"hello"))
    assert (await peer.reply())[0] == 404
    assert (await peer.reply())[2] == b"hello"


async def test_head_replies_have_headers_and_no_body(start: Start) -> None:
    """RFC 9110 §9.3.2."""
    peer = await (await start()).connect()
    await peer.send(request("HEAD", body=b"hello"))
    status, headers, _ = await peer.reply(head_only=True)
    assert (status, headers[b"content-length"]) == (200, b"5")
    await peer.send(request("HEAD", "/stream"))
    assert (await peer.reply(head_only=True))[0] == 200
    await peer.send(request(body=b"next"))
    assert (await peer.reply())[2] == b"next"


async def test_204_reply_has_no_content_length(start: Start) -> None:
    """RFC 9110 §8.6."""
    peer = await (await start()).connect()
    await peer.send(request(path="/empty") + request(body=b"next"))
    status, headers, _ = await peer.reply()
    assert (status, b"content-length" in headers) == (204, False)
    assert (await peer.reply())[2] == b"next"


async def test_connection_close_is_honored(start: Start) -> None:
    """RFC 9112 §9.6."""
    peer = await (await start()).connect()
    await peer.send(request(body=b"hello", extra=b"Connection: close\r\n"))
    status, headers, body = await peer.reply()
    assert (status, headers[b"connection"], body) == (200, b"close", b"hello")
    assert await peer.rest() == b""


async def test_http_1_0_requests_close_the_connection(start: Start) -> None:
    """RFC 9112 §9.3."""
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


async def test_expect_continue_waits_for_the_running_call(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(request(path="/slow", body=b"first"))
    head = b"POST /echo HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    await peer.send(head)
    assert (await peer.reply())[2] == b"first"
    assert await peer.line() == b"HTTP/1.1 100 Continue"
    assert await peer.line() == b""
    await peer.send(b"hello")
    assert (await peer.reply())[2] == b"hello"


async def test_error_421_for_an_unserved_host_mentions_the_setting(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(b"POST /echo HTTP/1.1\r\nHost: evil.com\r\nContent-Length: 1\r\n\r\nx" + request(body=b"next"))
    status, _, body = await peer.reply()
    assert status == 421
    assert b"allowed_hosts" in body
    assert (await peer.reply())[2] == b"next"


async def test_probes_accept_any_host(start: Start) -> None:
    peer = await (await start()).connect()
    await peer.send(b"GET /livez HTTP/1.1\r\nHost: pod-7.internal\r\n\r\n")
    assert (await peer.reply())[0] == 204


async def test_other_origins_get_403_and_allowed_ones_cors_headers(start: Start) -> None:
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


async def test_preflight_reply_reflects_requested_headers(start: Start) -> None:
    peer = await (await start({("OPTIONS", "/echo"): echo})).connect()
    extra = (
        b"Origin: http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: content-type, mcp-param-region\r\n"
    )
    await peer.send(request("OPTIONS", extra=extra))
    status, headers, _ = await peer.reply()
    assert status == 204
    assert headers[b"access-control-allow-headers"] == b"content-type, mcp-param-region"
    assert b"POST" in headers[b"access-control-allow-methods"]


async def test_handler_headers_are_sent(start: Start) -> None:
    async def custom(request: HttpRequest) -> Response:
        return Response(
            body=b"{}", status=202, head=b"content-type: application/json\r\nmcp-session-id: abc\r\nx-two: 1\r\n"
        )

    peer = await (await start({("POST", "/custom"): custom})).connect()
    await peer.send(request(path="/custom"))
    status, headers, body = await peer.reply()
    assert (status, body) == (202, b"{}")
    assert (headers[b"mcp-session-id"], headers[b"x-two"]) == (b"abc", b"1")
