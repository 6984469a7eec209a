import asyncio
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from cases import for_each
from http_peer import ToyApp
from millstream._config import Settings
from millstream._http import server
from millstream._http.hosts import HostPolicy
from millstream._http.message import HttpRequest, Response
from millstream._http.server import HeaderLineCache
from millstream._http.server.connection import BODY, FAST_BODY, IDLE
from millstream._http.server.listener import HttpProtocol, SocketListener
from property_settings import examples
from strategies import bytewise, cuts
from wire import FakeTransport

FIRST = b"POST /echo HTTP/1.1"
USUAL = [b"Host: 127.0.0.1:8000", b"content-type: application/json", b"Accept: application/json, text/event-stream"]


class Side:
    """A server with or without the short reading. Its connections share what was remembered."""

    def __init__(self, *, fast: bool) -> None:
        self.heard: list[object] = []
        limits = Settings(max_body=60)
        self.table = ToyApp({("POST", "/echo"): self._echo, ("POST", "/slow"): self._slow}, limits).table
        self.table.limits = structs.replace(self.table.limits, max_header_count=9, max_header_bytes=600)
        if not fast:
            self.table.by_line = {}

    async def _echo(self, request: HttpRequest) -> Response:
        self.heard.append(
            (request.method, request.path, request.query, list(request.raw_headers), request.headers, request.body,
             request.peer, request.scheme)
        )  # fmt: skip
        return Response(request.body)

    async def _slow(self, request: HttpRequest) -> Response:
        await asyncio.sleep(0)
        return await self._echo(request)

    def connect(self) -> HttpProtocol:
        """A connection to a server in the loop that runs: a server has one, and so has each example."""
        return SocketListener(self.table).make_protocol()

    async def talk(self, pieces: list[bytes]) -> tuple[bytes, bool, list[object]]:
        """What was answered, whether the connection was ended, and what the handler got."""
        self.heard = []
        connection, loop = self.connect(), asyncio.get_running_loop()
        transport = FakeTransport()
        connection.connection_made(transport)
        for piece in pieces:
            if not transport.closed and piece:
                loop.call_soon(connection.data_received, piece)  # as from a socket: no task runs
            for _ in range(5):
                await asyncio.sleep(0)
        for _ in range(12):
            await asyncio.sleep(0)
        state = connection.connection
        reading = BODY if state.reading == FAST_BODY else max(state.reading, IDLE), state.busy
        connection.connection_lost(None)
        return re.sub(rb"date: [^\r]+\r\n", b"", b"".join(transport.written)), transport.closed, [*self.heard, reading]


SHORT, EXACT = Side(fast=True), Side(fast=False)


@cache
def _runner() -> asyncio.Runner:
    """One event loop for thousands of conversations."""
    return asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def _loop_ends_with_these_tests() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    yield
    _runner().close()
    _runner.cache_clear()


def compare(pieces: list[bytes]) -> tuple[bytes, bool, list[object]]:
    """Both ways of one conversation."""

    async def both() -> list[tuple[bytes, bool, list[object]]]:
        return [await side.talk(pieces) for side in (SHORT, EXACT)]

    short, exact = _runner().run(both())
    assert short == exact
    return short


def message(lines: list[bytes], body: bytes, first: bytes = FIRST) -> bytes:
    """A request as it stands on the wire."""
    return b"\r\n".join([first, *lines, b"", body])


def sized(body: bytes) -> bytes:
    """Its length as a header line."""
    return b"Content-Length: %d" % len(body)


FIRSTS = st.sampled_from([
    *[FIRST] * 6, b"POST /slow HTTP/1.1", b"POST /echo HTTP/1.0", b"post /echo HTTP/1.1", b"POST /echo?x HTTP/1.1",
    b"POST  /echo HTTP/1.1", b"GET /echo HTTP/1.1", b"POST http://a/echo HTTP/1.1", b" POST /echo HTTP/1.1",
    b"POST /echo HTTP/1.1 ", b"\r\nPOST /echo HTTP/1.1",
])  # fmt: skip
NAMES = [
    b"accept", b"Accept", b"ACCEPT", b"MCP-Protocol-Version", b"mcp-session-id", b"Mcp-Name", b"User-Agent", b"x-other",
    b"cookie", b"Host", b"origin", b"expect", b"connection", b"Connection", b"proxy-connection", b"upgrade",
    b"transfer-encoding", b"accept ", b" accept", b"", b"acc\x00ept", b"content-length", b"Content-Length",
    b"X-Forwarded-For", b"authorization",
]  # fmt: skip
COLONS = [b": ", b":", b" : ", b":  "]
VALUES = [
    b"a", b"b c", b"", b" ", b" a", b"a ", b"a\t", b"\ta", b"a\x00b", b"a\x7fb", b"a\x0bb", b"\xc3\xa9", b"a\nb",
    b"a\rb", b"a\r\n b", b"close", b"keep-alive", b"Keep-Alive", b"keep-alive, upgrade", b"chunked", b"100-continue",
    b"127.0.0.1", b"evil.example", b"3", b"+3", b"03", b"3_0", b"3,3", b"\xb2", b"9" * 18, b"x" * 550, b"61",
]  # fmt: skip
LINES = st.one_of(
    st.sampled_from(USUAL),
    st.builds(
        lambda *parts: b"".join(parts),
        st.sampled_from(NAMES),
        st.sampled_from(COLONS),
        st.sampled_from(VALUES) | st.binary(max_size=4),
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is usual, or nearly, or not at all."""
    body = draw(st.binary(max_size=8) | st.just(b"x" * 61))
    lines = [*USUAL, sized(body)] if draw(st.booleans()) else [*draw(st.lists(LINES, max_size=9)), sized(body)]
    for line in draw(st.lists(LINES, max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    body += draw(st.sampled_from([b""] * 5 + [b"y", b"\r\n"]))
    return message(lines, body[draw(st.sampled_from([0] * 8 + [1])) :], draw(FIRSTS))


@given(st.lists(requests(), min_size=1, max_size=3).map(b"".join).flatmap(cuts) | st.lists(requests(), max_size=3))
@settings(max_examples=examples(20))
@example([message([*USUAL, b"content-length: 3"], b"abc")] * 3)
@example([message([*USUAL, b"content-length: 3"], b""), b"ab", b"c" + message([*USUAL, sized(b"d")], b"d")])
def test_fast_head_reader_agrees_with_the_parser_on_requests(pieces: list[bytes]) -> None:
    compare(pieces)


@for_each("name", NAMES, ids=[name.decode() or "empty" for name in NAMES])
def test_fast_head_reader_agrees_with_the_parser_on_lines(name: bytes) -> None:
    for line in (name + colon + value for colon in COLONS for value in VALUES):
        lines = [usual for usual in [*USUAL, b"content-length: 3"] if not usual.lower().startswith(name.lower() + b":")]
        compare([message([*lines[:2], line, *lines[2:]], b"abc"), message([*USUAL, b"content-length: 1"], b"x")])


SPELLINGS = [
    b"Host", b"Content-Length", b"CONTENT-TYPE", b"connection", b"Connection", b"Proxy-Connection", b"Upgrade", b"TE",
    b"Trailer", b"Keep-Alive", b"X-Real-IP", b"X-Request-ID", b"x_forwarded_for", b"X-Forwarded-For", b"Forwarded",
    b"CF-Connecting-IP", b"CF-IPCountry", b"Origin", b"ORIGIN", b"Sec-Fetch-Site", b"sec-fetch-mode", b"Cookie",
    b"Authorization", b"Expect", b"Transfer-Encoding", b"HTTP2-Settings", b"X-Tenant", b"!#$%&'*+-.^_`|~09azAZ",
    b"x(", b"x/y", b"x:y", b"x y", b"x\ty", b"x\x80", b"x\xc3\xa4", b'"x"', b"x\x7f", b"x\x00",
]  # fmt: skip


@for_each("spelling", SPELLINGS, ids=[repr(spelling)[2:-1] for spelling in SPELLINGS])
def test_fast_head_reader_agrees_with_the_parser_on_names(spelling: bytes) -> None:
    values = (
        b"a", b"", b" a", b"a\x7fb", b"\xc3\xa9", b"keep-alive", b"127.0.0.1", b"https", b"3", b"x" * 550,
        b"http://127.0.0.1:8000", b"http://localhost", b"http://evil.example", b"null", b"same-origin", b"cross-site",
        b"chunked", b"h2c", b"websocket", b"100-continue", b"close",
    )  # fmt: skip
    for line in (spelling, *(spelling + b": " + value for value in values)):
        rest = [each for each in USUAL if not each.lower().startswith(spelling.lower() + b":")]
        size = [] if spelling.lower() == b"content-length" else [b"content-length: 3"]
        compare([message([*rest, line, *size], b"abc"), message([*USUAL, b"content-length: 1"], b"x")])


class CountingParser:
    """A parser that tells how often it was fed."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self.fed = 0

    def feed_data(self, data: bytes) -> None:
        """Count and parse."""
        self.fed += 1
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


ODD = [
    b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n",
    message([*USUAL, b"Transfer-Encoding: chunked"], b"1\r\nx\r\n0\r\nmore: 1\r\n\r\n"),
    message([*USUAL, b"X-Odd:no-space", b"content-length: 1"], b"x"),
    message([*USUAL, b"content-length: 1"], b"x") * 2,
    message([*USUAL, b"expect: 100-continue", b"content-length: 1"], b"x"),
    message([*USUAL, b"connection: upgrade", b"upgrade: h2c", b"content-length: 1"], b"x"),
]


@for_each("odd", ODD, ids=["get", "chunked", "no space", "pipelined", "expect", "upgrade"])
async def test_ordinary_requests_after_another_one_bypass_the_parser(odd: bytes) -> None:
    await SHORT.talk([message([*USUAL, b"content-length: 1"], b"x")])  # makes the Host known
    connection = SHORT.connect()
    connection.connection_made(FakeTransport())
    usual = message([*USUAL, b"X-Request-ID: 7f", b"Origin: http://127.0.0.1:8000", b"content-length: 1"], b"x")
    for data in (usual, odd):
        connection.data_received(data)
        for _ in range(6):
            await asyncio.sleep(0)
    assert connection.connection._parser is not None
    connection.connection._parser = parser = CountingParser(connection.connection._parser)  # type: ignore[assignment]
    for data in (usual, usual):
        SHORT.heard = []
        connection.data_received(data)
        for _ in range(6):
            await asyncio.sleep(0)
        assert len(SHORT.heard) == 1
    connection.connection_lost(None)
    assert parser.fed == 0


async def test_connections_with_only_ordinary_requests_create_no_parser() -> None:
    await SHORT.talk([message([*USUAL, b"content-length: 1"], b"x")])  # makes the Host known
    connection = SHORT.connect()
    connection.connection_made(FakeTransport())
    data = message([*USUAL, b"content-length: 2"], b"xy")
    for piece in (data, data[:-1], data[-1:]):
        connection.data_received(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert connection.connection._parser is None
    connection.connection_lost(None)


async def test_rejected_origins_are_noted_once() -> None:
    noted: list[int] = []
    side = Side(fast=True)
    side.table.policy = HostPolicy(loopback_bind=True, note=noted.append)
    usual = [message([*USUAL, b"content-length: 1"], b"x")]
    await side.talk(usual)  # makes the Host known
    evil = message([*USUAL, b"Origin: http://evil.example", b"content-length: 2"], b"xy")
    for pieces in ([evil], [evil[:-1], evil[-1:]]):
        written, _, heard = await side.talk([*pieces, *usual])
        assert written.startswith(b"HTTP/1.1 403")
        assert written.endswith(b"\r\n\r\nx")
        assert len(heard) == 2
    assert noted == [403, 403]


CHUNKED = [*USUAL, b"transfer-encoding: chunked"]
LAST = b"\r\n0\r\n\r\n"
CHUNKS = [
    *(chunk + LAST for chunk in (
        b"3\r\nabc", b"03\r\nabc", b"00000003\r\nabc", b"000000003\r\nabc", b"A\r\n0123456789", b"a\r\n0123456789",
        b"3;x=y\r\nabc", b"3 \r\nabc", b"+3\r\nabc", b"0x3\r\nabc", b"3_0\r\nabc", b"-1\r\n", b"\r\nabc", b"3\r\nabcd",
        b"4\r\nabc", b"1\r\na\r\n2\r\nbc", b"3d\r\n" + b"x" * 61, b"FFFFFFFFF\r\nabc",
    )),
    b"0\r\n\r\n", b"3\nabc\n0\n\n", b"3\r\nabc\r\n00\r\n\r\n", b"3\r\nabc\r\n0\r\nx: y\r\n\r\n", b"3\r\nabc\r\n0\r\n",
    b"3\r\nabc", b"3\r\nabc" + LAST + b"POST", b"",
]  # fmt: skip


@for_each("lines", [[], [b"content-length: 3"], [b"transfer-encoding: chunked"], [b"connection: close"], [b"te: x"]])
def test_fast_head_reader_agrees_with_the_parser_on_chunks(lines: list[bytes]) -> None:
    usual = message([*USUAL, b"content-length: 1"], b"x")
    for chunks in CHUNKS:
        for place in (1, len(CHUNKED)):
            data = message([*CHUNKED[:place], *lines, *CHUNKED[place:]], chunks)
            compare([data, usual])
            compare([data[:-2], data[-2:], usual])
            compare([data + usual])


@for_each(
    ("data", "parsed"), [(message(CHUNKED, b"3\r\nabc" + LAST), False), (message(CHUNKED, b"3\r\nabc\r\n0\r\n"), True)]
)
async def test_one_chunk_bypasses_the_parser(data: bytes, parsed: bool) -> None:
    await SHORT.talk([message([*USUAL, b"content-length: 1"], b"x")])  # makes the Host known
    connection = SHORT.connect()
    connection.connection_made(transport := FakeTransport())
    connection.data_received(data)
    for _ in range(6):
        await asyncio.sleep(0)
    assert b"".join(transport.written).endswith(b"\r\n\r\nabc") is not parsed
    assert (connection.connection._parser is not None) is parsed
    connection.connection_lost(None)


async def test_last_requests_bypass_the_parser() -> None:
    await SHORT.talk([message([*USUAL, b"content-length: 1"], b"x")])  # makes the Host known
    connection = SHORT.connect()
    connection.connection_made(transport := FakeTransport())
    connection.data_received(message([*USUAL, b"Connection: close", b"content-length: 1"], b"x"))
    for _ in range(6):
        await asyncio.sleep(0)
    assert connection.connection._parser is None
    assert (transport.closed, b"connection: close\r\n" in transport.written[0]) == (True, True)
    connection.connection_lost(None)


@for_each("cut", [list, bytewise], ids=["whole", "bytewise"])
def test_ordinary_requests_are_answered_with_any_segmentation(cut: Callable[[Any], Any]) -> None:
    data = message([*USUAL, b"content-length: 2"], b"{}")
    written, _, heard = compare(list(cut(data) if cut is bytewise else [data]))
    assert written.endswith(b"\r\n\r\n{}")
    assert len(heard) == 2


def test_body_may_follow_an_ordinary_head_later() -> None:
    head = message([*USUAL, b"content-length: 4"], b"")
    written, _, heard = compare([head, b"ab", b"cd", head + b"efgh"])
    assert written.count(b"HTTP/1.1 200") == 2
    assert len(heard) == 3


def test_incomplete_heads_are_not_read() -> None:
    written, _, heard = compare([message([*USUAL, b"content-length: 0"], b"").removesuffix(b"\r\n\r\n"), b"1\r\n\r\nx"])
    assert written.endswith(b"\r\n\r\nx")
    assert len(heard) == 2


@for_each(
    "line",
    [
        b"content-length: 3",
        b"transfer-encoding: chunked",
        b"Transfer-Encoding:chunked",
        b"host: evil.example",
        b"host: 127.0.0.1:8000",
    ],
)
def test_ambiguous_lines_are_left_to_the_parser(line: bytes) -> None:
    for place in range(len(USUAL) + 2):
        lines = [*USUAL, b"content-length: 5"]
        lines.insert(place, line)
        written, _, _ = compare([message(lines, b"hello"), message([*USUAL, b"content-length: 1"], b"x")])
        assert not written.endswith(b"\r\n\r\nhello")


def test_ordinary_heads_have_the_same_limits() -> None:
    names = [
        b"accept-encoding",
        b"accept-language",
        b"cache-control",
        b"mcp-method",
        b"mcp-name",
        b"pragma",
        b"user-agent",
    ]
    many = [*USUAL, *(name + b": a" for name in names), b"content-length: 1"]
    assert b" 431 " in compare([message(many, b"x")])[0]
    assert b" 431 " in compare([message([*USUAL, b"user-agent: " + b"a" * 600, b"content-length: 1"], b"x")])[0]
    assert b" 413 " in compare([message([*USUAL, b"content-length: 61"], b"x" * 61)])[0]
    assert b" 413 " in compare([message([*USUAL, b"content-length: 99999999999999"], b"x")])[0]
    assert b" 400 " in compare([message([*USUAL[1:], b"content-length: 1"], b"x")])[0]
    assert b" 421 " in compare([message([b"host: evil.example", *USUAL[1:], b"content-length: 1"], b"x")])[0]


def test_line_cache_reads_only_plain_content_lengths() -> None:
    lines = HeaderLineCache()
    assert lines[b"Content-Length: 60"] == (b"content-length", b"60")
    for value in (b"9" * 16, b"+3", b"3_0", b"\xb2", b""):
        with pytest.raises(KeyError):
            lines[b"Content-Length: " + value]


def test_line_cache_is_bounded_and_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MAX_LINES", 1024)
    lines = HeaderLineCache()
    for number in range(5000):
        assert lines[b"mcp-name: %d" % number] == (b"mcp-name", b"%d" % number)
    assert len(lines) == 1024
    assert (b"mcp-name: 3975" in lines, b"mcp-name: 3976" in lines) == (False, True)
    assert lines[b"Authorization: Bearer x"] == (b"authorization", b"Bearer x")
    assert lines[b"user-agent: " + b"a" * 600] == (b"user-agent", b"a" * 600)
    assert not {line for line in lines if line.startswith((b"Auth", b"user"))}
    lines.keep_credential(b"Bearer valid")
    for number in range(5000):
        assert lines[b"user-agent: %d" % number] == (b"user-agent", b"%d" % number)
    assert {line for line in lines if line[1:].startswith(b"uth")} == {
        b"Authorization: Bearer valid",
        b"authorization: Bearer valid",
    }
    lines.forget_credentials()
    assert not {line for line in lines if line[1:].startswith(b"uth")}
    for number in range(1000):
        lines.keep_credential(b"Bearer %d" % number)
    lines.keep_credential(b"k" * 3000)
    assert sum(line.startswith((b"auth", b"Auth")) for line in lines) == 512
