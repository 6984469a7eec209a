"""Everything that reads a peer's bytes, as functions of bytes.

Each returns, or raises one of its documented errors. Any other error is a fault. A target is a factory, because some
need a server.
"""

import asyncio
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from httptools import HttpParserError

from issuer_world import AUDIENCE, ISSUER, key_set, token
from millstream import auth
from millstream._http.client import ArrivingBytes, Inflow
from millstream._http.client.connection import HttpConnection, HttpReply
from millstream._http.client.url import parse_url
from millstream._http.hosts import HostPolicy, parse_authority
from millstream._http.message import parse_accept, peer_network, query_values
from millstream._limits import CalendarQuota, Rate
from millstream._protocol import jsonrpc, seal, sse
from millstream._protocol.admission import admit_per_request, check_handshake_header, per_request_revision, target_name
from millstream._protocol.errors import LocalError, ProtocolError
from millstream._protocol.json_schema import check_schema
from millstream._protocol.jsonrpc import LineSplitter, exceeds_limits
from millstream._protocol.metadata import decode_name, decode_value
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL
from millstream._protocol.seal import KeyRing, SessionToken, open_state
from millstream._protocol.uri_template import UriTemplate
from millstream._stores.base import read_offset
from millstream._stores.local import calls as store_calls
from millstream._telemetry.logs import JsonLines
from millstream.client._errors import ClientError
from millstream.client._oauth.endpoints import read_challenges
from millstream.client._oauth.loopback import parse_redirect
from millstream.client._transports import EventReader
from wire import FakeTransport

Target = Callable[[bytes], None]
NOW = 1_800_000_000.0
RING = KeyRing([b"a key of the fuzzer that is long enough"])
GOOD = token().encode()


def pieces(data: bytes) -> list[bytes]:
    """Return the rest of the data, cut at positions from its first bytes."""
    if len(data) < 3:
        return [data]
    places = sorted(byte % (len(data) - 2) for byte in data[:2])
    rest = data[2:]
    return [rest[: places[0]], rest[places[0] : places[1]], rest[places[1] :]]


def text_of(data: bytes) -> str:
    """Return data as header text."""
    return data.decode("latin-1")


def envelopes() -> Target:
    """Parse JSON-RPC of all revisions: a message or batch, and its admission with and without matching headers."""

    def read(data: bytes) -> None:
        try:
            jsonrpc.check_text(data)
        except ProtocolError:
            return  # every transport does that first
        with suppress(ProtocolError):
            for each in jsonrpc.split_batch(data, 50):
                jsonrpc.read(each)
        with suppress(ProtocolError):
            message = jsonrpc.read(data)
            target_name(message.method, message.params)
            per_request_revision(message)
            for headers in (None, {b"mcp-method": message.method.encode(), b"mcp-protocol-version": b"2026-07-28"}):
                with suppress(ProtocolError):
                    admit_per_request(message, serves=lambda *_: True, requires=lambda *_: {}, headers=headers)
        exceeds_limits(data)

    return read


def event_streams() -> Target:
    """Check that a stream gives the same events whole and in pieces."""

    def read(data: bytes) -> None:
        def events(parts: list[bytes]) -> list[Any]:
            decoder, found = sse.Decoder(max_event_bytes=4096), []
            with suppress(ProtocolError):
                for part in parts:
                    found += decoder.feed(part)
            return found

        parts = pieces(data)
        whole, cut = events([b"".join(parts)]), events(parts)
        assert whole[: len(cut)] == cut[: len(whole)]

    return read


def uri_templates() -> Target:
    """Match the URI in the second line with the template in the first."""
    known = [UriTemplate(text) for text in ("a://{x}/b{?q,r}", "{+path}/x", "f://{/a,b}", "x{#frag}", "{a}{b}{c}")]

    def match(data: bytes) -> None:
        first, _, second = data.decode("utf-8", "surrogateescape").partition("\n")
        with suppress(ValueError):
            UriTemplate(first[:200]).match(second)
        for template in known:
            values = template.match(first)
            assert values is None or all(isinstance(value, str) for value in values.values())

    return match


def tokens() -> Target:
    """Verify JWTs, and parts of a valid one."""
    method: Any = auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set())
    good = GOOD
    parts = [part[:-1] for part in good.split(b".")]
    loop = asyncio.new_event_loop()

    def identify(data: bytes) -> None:
        for given in (data, good[: len(good) // 2] + data, data + good[len(data) % len(good) :]):
            with suppress(UnicodeDecodeError):
                found = loop.run_until_complete(method.identify(given.decode("ascii")))
                # The last character of base64 has bits that mean nothing, so a good token has several spellings.
                assert found is None or [part[:-1] for part in given.split(b".")] == parts, given

    return identify


def sealed() -> Target:
    """Decode session ids, round states, and event ids."""
    principal = Principal("a").binding
    facts = SessionToken("0" * 32, ALL[0].date, 0, "c", "1", principal, int(NOW), int(NOW) + 9, "epoch")
    session = seal.encode(facts, RING, b"n" * 12)

    def read(data: bytes) -> None:
        text = text_of(data)
        for given in (text, session[: len(session) // 2] + text, session + text):
            assert seal.decode(given, RING, NOW) is None or given == session
        with suppress(ProtocolError):
            open_state(text, RING, principal, int(NOW))
        assert RING.open(b"any", text) is None
        offset = read_offset(text)
        assert offset is None or offset >= 0

    return read


def headers() -> Target:
    """Parse header values: authorities, origins, media types, parameters, challenges, queries, rates, addresses."""
    policy = HostPolicy((), (), loopback_bind=True)

    def read(data: bytes) -> None:
        parse_authority(data)
        parse_accept(data)
        policy.allows_origin(data, b"127.0.0.1", "127.0.0.1", wildcard=True)
        text = text_of(data)
        with suppress(ProtocolError):
            decode_value(data)
        with suppress(ProtocolError):
            decode_name(data)
        with suppress(ProtocolError):
            check_handshake_header({b"mcp-protocol-version": data}, ALL[0])
        with suppress(ValueError):
            query_values(data)
        read_challenges(text)
        peer_network(text)
        for read_text in (Rate.of, CalendarQuota):
            with suppress(ValueError):
                read_text(text)
        with suppress(ClientError, ValueError):
            parse_url(text)
        with suppress(ClientError, ValueError):
            parse_redirect(f"/callback?{text}")

    return read


def lines() -> Target:
    """Split lines of stdio, in pieces and whole."""

    def read(data: bytes) -> None:
        parts = pieces(data)
        whole, cut = LineSplitter(100), LineSplitter(100)
        found = [line for part in parts for line in cut.feed(part)] + cut.end()
        assert found == [*whole.feed(b"".join(parts)), *whole.end()]

    return read


def store_wire() -> Target:
    """Decode messages between the store's parent process and its workers."""

    def read(data: bytes) -> None:
        framed = struct.pack(">I", len(data)) + data
        for given in (data, framed):
            frames = store_calls.Frames(1 << 16)
            with suppress(ValueError):
                for content in frames.feed(given):
                    for decode in (store_calls.read_requests, store_calls.read_answers):
                        with suppress(ValueError):
                            decode(content)

    return read


def schemas() -> Target:
    """Check JSON Schemas from untrusted sources. No `$ref` is fetched."""

    def read(data: bytes) -> None:
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = msgspec.json.decode(data)
            if isinstance(value, dict) and not exceeds_limits(data):
                with suppress(ValueError, LocalError, TypeError):
                    check_schema(value)

    return read


def log_lines() -> Target:
    """Log text from peers, and check that each record is one line of JSON."""
    import logging  # noqa: PLC0415  only here

    write = JsonLines()

    def log(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
        record.target = text
        line = write.format(record)
        assert len(line.splitlines()) <= 1
        json.loads(line)

    return log


def client_replies() -> Target:
    """Check that a server's reply gives our client the same result or error whole and in pieces, and leaves nothing."""
    loop = asyncio.new_event_loop()

    async def outcome(parts: list[bytes]) -> object:
        arriving = ArrivingBytes(1 << 20, 0)
        connection = HttpConnection(loop, 1 << 12, lambda _: None, Inflow(arriving, "server"))
        connection.connection_made(FakeTransport())
        reply = asyncio.ensure_future(_read_reply(connection.send(b"GET / HTTP/1.1\r\n\r\n", "caller")))
        for part in parts:
            if not connection.closed:
                connection.data_received(part)
                await asyncio.sleep(0)
        connection.connection_lost(None)
        found = await reply
        assert arriving.servers.used == arriving.callers.used == 0
        return found

    async def read(data: bytes) -> None:
        parts = pieces(data)
        whole = await outcome([b"".join(parts)])
        assert await outcome(parts) == whole
        assert await outcome([part[at : at + 1] for part in parts for at in range(len(part))]) == whole

    return lambda data: loop.run_until_complete(read(data))


async def _read_reply(waiter: asyncio.Future[HttpReply]) -> object:
    """Return everything a reply consists of, up to its error."""
    found: list[Any] = []
    reader = EventReader(1 << 12)
    try:
        reply = await waiter
        found += [reply.status, reply.headers, reply.body]
        if reply.stream is not None:
            reader.attach(reply.stream)
            while (event := await reader.event()) is not None:
                found.append(event)
            found.append(reader.last_event_id)
    except ClientError as exc:
        found.append(repr(exc))
    finally:
        reader.close()
    return found


PARSERS: dict[str, Callable[[], Target]] = {
    each.__name__: each
    for each in (
        envelopes, event_streams, uri_templates, tokens, sealed, headers, lines, store_wire, schemas, log_lines,
        client_replies,
    )
}  # fmt: skip
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SEEDS: dict[str, list[bytes]] = {
    "envelopes": [
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}',
        b'[{"jsonrpc":"2.0","id":"a","method":"ping"},{"jsonrpc":"2.0","method":"x"}]',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m"}}',
    ],
    "event_streams": [b"  id: 1\nevent: message\ndata: {}\n\n", b"..data: a\r\ndata: b\r\rretry: 5\n:\n\n"],
    "uri_templates": [b"a://{x}/b{?q}\na://1/b?q=2", b"a://x/b?q=%41&r=", b"{+p}\n/%2e%2e/"],
    "tokens": [GOOD, b"eyJhbGciOiJub25lIn0.e30."],
    "headers": [
        b"[::1]:80", b"https://a.example:443", b"text/event-stream;q=0.5, */*", b'Bearer realm="x", scope="a b"',
        b"=?base64?aGk=?=", b"10/minute", b"a=b&c=%00", b"2001:db8::1",
    ],
    "store_wire": [msgspec.msgpack.encode([[1, 1, "key"], [22, 2, [[0, "k", 1, 60, 1.0, 1.0]]]])],
    "schemas": [b'{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"type":"string"}}}'],
    "client_replies": [
        b"..HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"..HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"..HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n",
        b"..HTTP/1.1 100 Continue\r\n\r\n%b8;a\r\nid: 1\nda\r\nB\r\nta: x\n\n:\n\nd\r\n0\r\nX: y\r\n\r\n" % STREAM,
        b"..HTTP/1.0 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>Until the end.",
        b"..HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
}  # fmt: skip
__all__ = ["PARSERS", "SEEDS", "HttpParserError", "Target"]
