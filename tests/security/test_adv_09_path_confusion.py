"""Path and URL confusion (CVE-2026-48710, PYSEC-2026-248): only the server's exact paths reach a handler.

The native and the ASGI path must parse all spellings alike, so that a check in one also holds in the other.
"""

import json
import re

import pytest

from bad_input.shop import make_shop
from cases import for_each
from four_workers import ADMIN_KEY, ON_FOUR
from wire import POST, Wire, encode_headers, encode_request, request, run_wire

SOCKETS = pytest.mark.parametrize("way", ["lane", ON_FOUR])
SIGN_IN = {"authorization": f"Bearer {ADMIN_KEY}"}
"""Ignored by servers without authentication."""
PING = json.dumps(request("ping")).encode()
OURS = ["/mcp", "/mcp/", "/%6dcp", "/mc%70/", "/mcp%2f", "/mcp?x=/secret", "/mcp?"]
"""ASGI decodes a path once, and the decoded path is compared."""
OTHERS = [
    "//mcp", "///mcp", "/mcp//", "/./mcp", "/mcp/.", "/x/../mcp", "/mcp/..", "/mcp/../mcp", "/mcp;x", "/mcp;/", "/MCP",
    "/mcp%00", "/mcp%2F..", "/%2e/mcp", "/%2e%2e/mcp", "/mcp%20", "/mcp%3fx", "/@google.com", "/mcp@evil",
    "/mcp%23", "/%252e/mcp", "/mcp\\", "/messages/../mcp", "/health/../mcp", "/livez/mcp", "/%ff", "/%zz",
]  # fmt: skip
TARGETS = [
    "http://evil.example/mcp",
    "@google.com",
    "mcp",
    "http://127.0.0.1@evil.example/mcp",
    "*",
    "evil.example:80",
    "?mcp",
]


async def status(wire: Wire, target: str, **headers: str) -> int:
    """Return the status of a POST to a request target on a new connection; 0 if it's closed without a reply."""
    assert wire.running is not None
    peer = await wire.running.connect()
    await peer.send(encode_request("POST", target, encode_headers({**POST, **SIGN_IN, **headers}), PING))
    line = await peer.line()
    peer.close()
    return int(line.split()[1]) if line else 0


@SOCKETS
async def test_only_exact_paths_reach_the_endpoint(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        for target in OURS:
            assert await status(wire, target) == 200, target
        for target in OTHERS:
            assert await status(wire, target) in (400, 404), target


@for_each("target", TARGETS)
@SOCKETS
async def test_absolute_targets_do_not_choose_the_host(way: str, target: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        served = target.startswith("http") and target.endswith("/mcp")
        assert await status(wire, target) in ((200,) if served else (400, 404, 421))
        assert await status(wire, target, host="evil.example") in (400, 421)
        assert await status(wire, "/mcp") == 200


@for_each(
    "host", ["a/?x=", "127.0.0.1/?x=", "127.0.0.1@evil.example", "localhost#", "127.0.0.1 evil", "[::1", ":80", ""]
)
@pytest.mark.parametrize("way", ["lane", "asgi", ON_FOUR])
async def test_hosts_that_would_change_a_url_are_rejected(way: str, host: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        for path in ("/mcp", "/sse", "/absent"):
            method = "GET" if path == "/sse" else "POST"
            reply = await wire.ask(method, path, {**POST, "host": host, "accept": "text/event-stream"}, PING)
            assert reply.status == 400, (path, reply)


@SOCKETS
async def test_endpoint_event_ignores_the_request_host(way: str) -> None:
    async with run_wire(make_shop(), way) as wire:
        assert wire.running is not None
        peer = await wire.running.connect()
        headers = encode_headers(
            {"host": "localhost:1", "accept": "text/event-stream", "x-forwarded-host": "evil.example", **SIGN_IN}
        )
        await peer.send(encode_request("GET", "/sse?//evil.example", headers, b""))
        await peer.head()
        data = (await peer.chunk()).split(b"data: ")[1].strip()
        assert data.startswith(b"/messages/?session_id=")
        assert re.fullmatch(rb"[\w-]{43,256}", data.removeprefix(b"/messages/?session_id="))
