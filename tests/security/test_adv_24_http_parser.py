"""Request smuggling (such as CVE-2025-43859): messages that two parsers could read differently are refused.

The corpus is sent natively and over ASGI. Each message ends the connection, so nothing after it is read as a request.
"""

from collections.abc import AsyncIterator

import pytest

from cases import for_each
from four_workers import FOUR, ON_FOUR, connect_to_four
from http_messages import HttpRequest, Response
from http_peer import HEAD, RunningServer, ToyApp, serve
from millstream import Settings

SMUGGLED = b"GET /admin HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Record:
    """Records the requests of the handlers."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, request: HttpRequest) -> Response:
        """Record the path."""
        self.paths.append(request.path)
        return Response(body=b"ok")


@pytest.fixture
def record() -> Record:
    """Return a handler that records its requests."""
    return Record()


@pytest.fixture(params=["lane", "asgi", ON_FOUR])
async def server(request: pytest.FixtureRequest, record: Record) -> AsyncIterator[RunningServer]:
    """Yield a server with two paths: a public one, and one that a proxy would refuse."""
    if request.param == FOUR:
        running = connect_to_four()
        yield running
        running.drop_connections()
        return
    lane = request.param == "lane"
    app = ToyApp({("POST", "/mcp"): record, ("GET", "/admin"): record}, Settings())
    async with serve(app, lane=lane) as running:
        yield running


def post(fields: bytes, body: bytes = b"") -> bytes:
    """Return a POST with these framing headers, followed by the smuggled request."""
    return b"POST /mcp HTTP/1.1\r\n" + HEAD + fields + b"\r\n" + body + SMUGGLED


CORPUS = {
    "both lengths": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 0\r\nContent-Length: 5\r\n"),
    "two equal lengths": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"12345"),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", b"12345"),
    "a signed length": post(b"Content-Length: +5\r\n", b"12345"),
    "a negative length": post(b"Content-Length: -1\r\n"),
    "a length with an underscore": post(b"Content-Length: 1_0\r\n"),
    "a hexadecimal length": post(b"Content-Length: 0x5\r\n", b"12345"),
    "an overflowing length": post(b"Content-Length: 18446744073709551621\r\n", b"12345"),
    "a length of digits without end": post(b"Content-Length: " + b"9" * 5000 + b"\r\n"),
    "a blank before the colon": post(b"Content-Length : 5\r\n", b"12345"),
    "a folded header": post(b"X-Folded: a\r\n Content-Length: 5\r\n"),
    "a coding that is not chunked": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "chunked not last": post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "a vertical tab in the coding": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    "a bad chunk size": post(b"Transfer-Encoding: chunked\r\n", b"0x0\r\n\r\n"),
    "a signed chunk size": post(b"Transfer-Encoding: chunked\r\n", b"+0\r\n\r\n"),
    "a bad chunk end": post(b"Transfer-Encoding: chunked\r\n", b"1\r\naXX0\r\n\r\n"),
    "a bare line feed after a chunk": post(b"Transfer-Encoding: chunked\r\n", b"1\r\na\n0\r\n\r\n"),
    "an overflowing chunk size": post(b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff0\r\n\r\n"),
    "bare line feeds": b"POST /mcp HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 0\n\n" + SMUGGLED,
    "a bare carriage return": post(b"X: a\rContent-Length: 5\r\n"),
    "a NUL in a value": post(b"X: a\x00b\r\n"),
    "a name that is no token": post(b"X(): a\r\n"),
    "no name": post(b": a\r\n"),
    "an unknown version": b"POST /mcp HTTP/3.7\r\n" + HEAD + b"\r\n" + SMUGGLED,
    "a version of no number": b"POST /mcp HTTP/x\r\n" + HEAD + b"\r\n" + SMUGGLED,
    "an unknown method": b"STEAL /mcp HTTP/1.1\r\n" + HEAD + b"\r\n" + SMUGGLED,
    "no version": b"GET /admin\r\n\r\n",
    "a blank first": b" POST /mcp HTTP/1.1\r\n" + HEAD + b"\r\n" + SMUGGLED,
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SMUGGLED,
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
}


@for_each("message", CORPUS.values(), ids=CORPUS.keys())
async def test_ambiguous_framing_ends_the_connection_and_smuggles_nothing(
    server: RunningServer, record: Record, message: bytes
) -> None:
    """RFC 9112 §11.2."""
    for pieces in ([message], [message[n : n + 1] for n in range(len(message))]):
        peer = await server.connect()
        try:
            for piece in pieces:
                await peer.send(piece)
        except ConnectionError:
            # The server closed the connection while the request was being sent.
            pass
        answer = await peer.rest()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert b"HTTP/1.1 5" not in answer
    assert "/admin" not in record.paths
