"""No header, path, or query costs more than its length (our choice): CPU time is compared with that of plain text."""

import json
import time
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import quote

import pytest

from millstream import Server, auth
from wire import PER_REQUEST, Wire, encode_request, per_request, routing, run_wire

KEY = "a-key-of-this-test-4711"
SIZE = 8_000
"""Characters that fit through the limit that most proxies have for a header."""
DEARER = 20
"""How much dearer than plain text of the same length a value may be; time that grows with the square is 1,000 times."""
FREE_SECONDS = 0.02
NAMES = (
    "accept", "accept-encoding", "accept-language", "access-control-request-headers", "authorization", "baggage",
    "connection", "content-encoding", "content-type", "cookie", "expect", "forwarded", "host", "if-modified-since",
    "if-none-match", "keep-alive", "last-event-id", "mcp-method", "mcp-name", "mcp-param-a", "mcp-protocol-version",
    "mcp-session-id", "origin", "priority", "range", "referer", "sec-fetch-site", "sec-websocket-extensions",
    "sec-websocket-key", "sec-websocket-protocol", "te", "traceparent", "tracestate", "upgrade", "user-agent", "via",
    "x-client-id", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id",
)  # fmt: skip
REPEATED = (
    "0", ",", ";", "=", '"', "\\", ".", ":", "/", "[", "(", "-", "_", "%", "{", "<", "~", "+", "a,", "a;", "a=", "a=b;",
    "aaaa-", "%41", "%2e/", "../", "1.2.3.4,", 'for="1.1.1.1",', "q=0;", "gzip;q=0,", ",;q=0", "00-0", "é", '="\\"',
)  # fmt: skip
ROUTES = [
    ("GET", "/livez", ""),
    ("GET", "/", ""),
    ("POST", "/mcp", KEY),
    ("GET", "/events?channel=x", KEY),
]
TARGETS = ["/{}", "/?{}", "/events?channel={}", "/tools/{}", "/sign-in?next={}", "/docs/{}"]


def odd_values() -> Iterator[str]:
    """Yield long values: repeated tokens, and prefixes of known syntax with a long rest that doesn't fit it."""
    for each in (*REPEATED, " ", "\t"):
        yield each * (SIZE // len(each))
    for before, middle, after in (
        ("a", " ", "b"),
        ("a", "\t", "b"),
        ("text/html;q=", "0", "x"),
        ("text/html;q=0.", "0", "x"),
        ("text/html;q", " ", "=x"),
        ("gzip;q=0.", "0", "1"),
        ("Bearer ", "a", ""),
        ("Basic ", "A", ""),
        ("=?base64?", "A", "?="),
        ("[::", "1", ""),
        ("bytes=", "0-,", ""),
        ("W/", '"', ","),
        ("session=", "a.", "="),
        ("http://", "a.", ":1"),
        ("max-age=", "0", ","),
        ('a="', "\\", '"'),
    ):
        yield before + middle * (SIZE // len(middle)) + after


def make_server() -> Server:
    mcp = Server("headers", serve="all", auth=auth.keys(KEY))

    @mcp.tool
    def add(a: int, b: int) -> int:
        return a + b

    @mcp.resource("doc://{a}-{b}.{c}")
    def doc(a: str, b: str, c: str) -> str:
        return a + b + c

    return mcp


async def send(wire: Wire, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
    """Send a request, and read the beginning of the response."""
    assert wire.running is not None
    peer = await wire.running.connect()
    fields = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await peer.send(encode_request(method, target, fields, body))
    await peer.reader.read(1)
    peer.close()


async def measure(ask: Callable[[str], Awaitable[None]], value: str) -> float:
    started = time.process_time()
    await ask(value)
    return time.process_time() - started


async def find_dear(ask: Callable[[str], Awaitable[None]]) -> list[str]:
    """Return the values that cost much more than plain text of the same length, at three tries."""
    plain = max([await measure(ask, "a" * SIZE) for _ in range(3)])
    dear = list(odd_values())
    for number in range(3):  # each time another value, because some results are cached
        dear = [each for each in dear if await measure(ask, f"{each}{number}") > FREE_SECONDS + DEARER * plain]
    return [f"{each[:20]!r}…{each[-5:]!r}" for each in dear]


@pytest.mark.many
async def test_no_header_takes_more_time_than_plain_text_of_its_length() -> None:
    found: list[str] = []
    call = json.dumps(per_request("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})).encode()
    async with run_wire(make_server(), "http") as wire:
        for method, path, key in ROUTES:
            usual = {"host": "127.0.0.1", "accept": "application/json, text/event-stream"}
            usual |= {"mcp-protocol-version": PER_REQUEST, "mcp-method": "tools/call", "mcp-name": "add"}
            usual |= {"authorization": f"Bearer {key}"} if key else {}
            body = b""
            if method == "POST":
                body, usual["content-type"] = call, "application/json"
            for name in NAMES:

                async def ask(value: str) -> None:
                    await send(wire, method, path, usual | {name: value}, body)  # noqa: B023

                found += [f"{name}: {each} at {method} {path}" for each in await find_dear(ask)]
    assert found == []


async def test_no_path_or_query_takes_more_time_than_plain_text_of_its_length() -> None:
    found: list[str] = []
    async with run_wire(make_server(), "http") as wire:
        for target in TARGETS:

            async def ask(value: str) -> None:
                path = target.format(quote(value, safe="/%=&;,.:-+~"))[:SIZE]  # noqa: B023
                await send(wire, "GET", path, {"host": "127.0.0.1", "authorization": f"Bearer {KEY}"}, b"")

            found += [f"{target} with {each}" for each in await find_dear(ask)]
    assert found == []


async def test_every_spelling_of_quality_zero_is_recognized() -> None:
    async with run_wire(make_server(), "http") as wire:
        for quality, status in (("0", 406), ("0.", 406), ("0.000", 406), ("00", 406), ("0.001", 200), ("0x", 200)):
            headers = {**routing("tools/call", "add"), "authorization": f"Bearer {KEY}"}
            headers["accept"] = f"application/json;q={quality}, text/event-stream;q={quality}"
            reply = await wire.post(per_request("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}}), headers)
            assert reply.status == status, quality
