"""The attackers of the soak test.

Each tries to leave something behind or to delay the server, and none may succeed. Every attack is bounded, uses only
loopback, and is checked by the server's required response.
"""

import asyncio
import contextlib
import json
import random
import struct
from collections.abc import Awaitable, Callable

from benches.soak_peer import Peer, Wrong, in_session
from benches.wire import CLIENT, COMMON, META

MIB = 1024 * 1024
_SECONDS = 1.0
"""Seconds that an attacker holds its connections."""
_WIDE = {f"x{number}": {} for number in range(30_000)}
"""Capabilities of half a MiB."""


def _request(method: str, params: dict[str, object], id: int = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


def _post(path: str, head: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}content-length: {size}\r\n\r\n".encode() + body


def _opening(name: str) -> bytes:
    client = {"name": name, "version": "1"}
    return _request("initialize", {"protocolVersion": "2025-11-25", "capabilities": _WIDE, "clientInfo": client})


_OPENING = _opening("n" * MIB)


def _newest(method: str, name: str = "") -> str:
    named = f"mcp-name: {name}\r\n" if name else ""
    return f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: {method}\r\n{named}"


async def holds_bodies(peer: Peer) -> None:
    """Send truncated bodies, then close the connections."""
    body = b"x" * random.randrange(MIB // 2, 3 * MIB)
    await peer.hold(_post("/mcp", COMMON, body, 4 * MIB - 1), _SECONDS / 4)


async def declares_much(peer: Peer) -> None:
    """Open subscriptions and sessions with half a MiB of capabilities, or with many long URIs."""
    meta = META | {"io.modelcontextprotocol/clientCapabilities": _WIDE}
    listen: dict[str, object] = {"_meta": meta, "notifications": {"toolsListChanged": True}}
    await peer.hold(_post("/mcp", _newest("subscriptions/listen"), _request("subscriptions/listen", listen)), _SECONDS)
    uris = [f"orders://{number}-{'u' * 4000}" for number in range(900)]
    listen = {"_meta": META, "notifications": {"resourceSubscriptions": uris}}
    await peer.hold(_post("/mcp", _newest("subscriptions/listen"), _request("subscriptions/listen", listen)), _SECONDS)
    await peer.ask("POST", "/mcp", COMMON, _OPENING)


async def declares_much_on_a_stream(peer: Peer) -> None:
    """Hold an HTTP+SSE stream open after an `initialize` with half a MiB of capabilities."""
    async with peer.connection() as (reader, writer):
        writer.write(peer.request("GET", "/sse", "accept: text/event-stream\r\n", b""))
        async with asyncio.timeout(30):
            while not (line := await reader.readline()).startswith(b"data: "):
                pass
        status, _ = await peer.ask("POST", line[6:].strip().decode(), COMMON, _OPENING)
        if status != 202:
            raise Wrong(f"initialize was answered with {status} on the way to a stream")
        await asyncio.sleep(_SECONDS)


async def declares_much_on_a_socket(peer: Peer) -> None:
    """Hold a WebSocket open after the same."""
    head = (
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: mcp\r\n"
    )
    opening = _opening("n" * (MIB // 2))
    async with peer.connection() as (reader, writer), asyncio.timeout(30):
        writer.write(f"GET /ws HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(struct.pack(">BBQ4x", 0x81, 0xFF, len(opening)) + opening)  # text, masked with zeros
        if await reader.readexactly(1) != b"\x81":
            raise Wrong("initialize was not answered on a WebSocket")
        await asyncio.sleep(_SECONDS)


async def sends_unknown_arguments(peer: Peer) -> None:
    """Send large unknown arguments, with integers that no float can represent."""
    extra = {f"y{number}": 10**17 + number for number in range(20_000)}
    params: dict[str, object] = {"name": "add_numbers", "arguments": {"a": 1, "b": 2, **extra}, "_meta": META}
    status, _ = await peer.ask("POST", "/mcp", _newest("tools/call", "add_numbers"), _request("tools/call", params))
    if status not in (200, 400):
        raise Wrong(f"unknown arguments were answered with {status}")


async def abandons_calls(peer: Peer) -> None:
    """Start calls without a session, and disconnect immediately."""
    params: dict[str, object] = {"name": "long_task", "arguments": {"steps": 100, "seconds": 600}}
    for number in range(20):
        await peer.hold(_post("/mcp", COMMON, _request("tools/call", params, number)), 0.0)


async def sends_many_items(peer: Peer) -> None:
    """Send a batch of a million messages, and an event with a million arrays."""
    number, item = 1_000_000, random.choice((b"1", b"[]"))
    many = b"[%b]" % b",".join([item] * number)
    status, _ = await peer.ask("POST", "/mcp", f"{COMMON}mcp-protocol-version: 2025-03-26\r\n", many)
    if status != 400:
        raise Wrong(f"a batch of a million was answered with {status}")
    status, _ = await peer.ask("POST", "/publish", COMMON, b'{"data":%b}' % many)
    if not 400 <= status < 500:
        raise Wrong(f"an event of a million values was answered with {status}")


async def abandons_questions(peer: Peer) -> None:
    """Start calls in a session that ask the user, and disconnect without answering."""
    opening = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}, "clientInfo": CLIENT}
    head = in_session(await peer.initialize(_request("initialize", opening)))
    params: dict[str, object] = {"name": "order_parcel", "arguments": {"item": "a book"}}
    for number in range(20):
        await peer.hold(_post("/mcp", head, _request("tools/call", params, number)), 0.0)


async def pipelines(peer: Peer) -> None:
    """Send a thousand requests in one segment."""
    params: dict[str, object] = {"_meta": META}
    data = _post("/mcp", _newest("tools/list"), _request("tools/list", params)) * 1_000
    await peer.hold(data, _SECONDS / 2)


async def makes_up_clients(peer: Peer) -> None:
    """Make streamed calls for clients that never read the results, and create mailboxes and members with new names."""
    arguments: dict[str, object] = {"steps": 1, "seconds": 0, "stream": True}
    params: dict[str, object] = {"name": "long_task", "arguments": arguments, "_meta": META}
    for number in range(10):
        head = _newest("tools/call", "long_task") + f"x-client-id: made-up-{random.getrandbits(64)}\r\n"
        await peer.ask("POST", "/mcp", head, _request("tools/call", params, number))


async def comes_from_elsewhere(peer: Peer) -> None:
    """Open streams like an image on another site's page, and like a client behind a proxy on this machine."""
    head = "accept: */*\r\nsec-fetch-site: cross-site\r\nsec-fetch-mode: no-cors\r\nsec-fetch-dest: image\r\n"
    for path in ("/mcp/sse/alice", "/events?client_id=mallory&name=mallory", "/sse"):
        status, _ = await peer.ask("GET", path, head, b"")
        if status != 403:
            raise Wrong(f"a cross-site GET of {path} was answered with {status}")
    for path in ("/dashboard", "/metrics", "/inspect"):
        status, _ = await peer.ask("GET", path, "x-forwarded-for: 203.0.113.9\r\n", b"")
        if status != 403:
            raise Wrong(f"{path} was answered through a proxy with {status}")


async def makes_up_places(peer: Peer) -> None:
    """Send made-up hosts, event ids, and session ids."""
    address = ".".join(str(random.randrange(1, 255)) for _ in range(4))
    await peer.hold(f"GET /livez HTTP/1.1\r\nhost: {address}\r\n\r\n".encode(), 0.05)
    await peer.listen("/events?channel=*", f"{random.getrandbits(64):x}.{random.randrange(10**9)}", 0.05)
    await peer.ask("DELETE", "/mcp", f"mcp-session-id: {random.getrandbits(256):x}\r\n", b"")


async def comes_and_goes(peer: Peer) -> None:
    """Join sixteen channels and leave them."""
    channels = "&".join(f"channel=room-{number}" for number in range(16))
    await peer.listen(f"/events?{channels}&client_id=churn-{random.getrandbits(32)}&name=churn", "", 0.05)


async def breaks_chunks(peer: Peer) -> None:
    """Send invalid chunks after an `Expect` header."""
    head = (
        f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n{COMMON}expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    await peer.hold(head.encode() + b"zz\r\n", 0.1)


async def counts_too_high(peer: Peer) -> None:
    """Send integers with 400 digits."""
    params: dict[str, object] = {"name": "add_numbers", "arguments": {"a": 10**400, "b": 1}, "_meta": META}
    status, answer = await peer.ask(
        "POST", "/mcp", _newest("tools/call", "add_numbers"), _request("tools/call", params)
    )
    if status >= 500 or b"incident" in answer:
        raise Wrong(f"a number of 400 digits was answered with {status} {answer[:200]!r}")


ATTACKS: tuple[Callable[[Peer], Awaitable[None]], ...] = (
    holds_bodies, declares_much, declares_much_on_a_stream, declares_much_on_a_socket, sends_unknown_arguments,
    sends_many_items, abandons_calls, abandons_questions, pipelines, makes_up_clients, comes_from_elsewhere,
    makes_up_places, comes_and_goes, breaks_chunks, counts_too_high,
)  # fmt: skip


async def attacks(peer: Peer) -> None:
    """Run a random attack."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await random.choice(ATTACKS)(peer)
