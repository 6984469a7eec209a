"""DNS rebinding (CVE-2025-66416, CVE-2025-66414, CVE-2026-34742, CVE-2026-63118): Host and Origin, by default settings.

A page on a name that the attacker points to 127.0.0.1 sends that name as Host, and its own Origin.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import product

import pytest
from msgspec.structs import replace

from four_workers import FOUR, ON_FOUR, connect_to_four
from http_peer import RunningServer, serve
from millstream import Server

ENDPOINTS = [
    ("POST", "/mcp"), ("GET", "/mcp"), ("DELETE", "/mcp"), ("OPTIONS", "/mcp"), ("POST", "/mcp/"),
    ("GET", "/sse"), ("POST", "/messages/?session_id=x"), ("POST", "/absent"),
]  # fmt: skip


@pytest.fixture(params=["lane", "asgi", ON_FOUR])
async def running(request: pytest.FixtureRequest) -> AsyncIterator[dict[bool, RunningServer]]:
    """Yield the default server, bound to loopback or to all addresses; four workers are bound to loopback only."""
    servers: dict[bool, RunningServer] = {}
    if request.param == FOUR:
        servers[True] = connect_to_four()
        yield servers
        servers[True].drop_connections()
        return
    async with AsyncExitStack() as stack:
        for loopback in (True, False):
            app = Server("default")
            app.runtimes.bind = replace(app.runtimes.bind, loopback=loopback)
            servers[loopback] = await stack.enter_async_context(serve(app, lane=request.param == "lane"))
            stack.push_async_callback(app.stop)
            # The first request starts the server; later connections take the fast path.
            assert await ask(servers[loopback], "GET", "/livez", b"Host: localhost\r\n") == 200
        yield servers


async def ask(server: RunningServer, method: str, path: str, fields: bytes) -> int:
    """Return the status of one request on a new connection."""
    peer = await server.connect()
    head = f"{method} {path} HTTP/1.1\r\n".encode()
    body = b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    await peer.send(head + fields + body)
    return (await peer.head())[0]


async def test_rebound_hosts_get_421_on_every_path(running: dict[bool, RunningServer]) -> None:
    for server, (method, path) in product(running.values(), ENDPOINTS):
        for host in (b"evil.com", b"evil.com:8000", b"localhost.evil.com", b"127.0.0.1.evil.com"):
            assert await ask(server, method, path, b"Host: %b\r\n" % host) == 421, (method, path, host)


async def test_foreign_origins_get_403_on_every_path(running: dict[bool, RunningServer]) -> None:
    for server, (method, path) in product(running.values(), ENDPOINTS):
        for origin in (b"http://evil.com", b"https://localhost.evil.com", b"null"):
            fields = b"Host: 127.0.0.1:8000\r\nOrigin: %b\r\n" % origin
            assert await ask(server, method, path, fields) == 403, (method, path, origin)


async def test_missing_hosts_get_400_on_every_path(running: dict[bool, RunningServer]) -> None:
    """RFC 9112 §3.2."""
    for server, (method, path) in product(running.values(), ENDPOINTS):
        assert await ask(server, method, path, b"") == 400, (method, path)
        assert await ask(server, method, path, b"Host: localhost\r\nHost: evil.com\r\n") == 400


async def test_loopback_pages_may_call_only_loopback_servers(running: dict[bool, RunningServer]) -> None:
    fields = b"Host: localhost:8000\r\nOrigin: http://localhost:3000\r\n"
    assert await ask(running[True], "POST", "/mcp", fields) not in (403, 421)
    if False in running:
        assert await ask(running[False], "POST", "/mcp", fields) == 403


async def test_addresses_and_loopback_names_are_served(running: dict[bool, RunningServer]) -> None:
    hosts = (b"127.0.0.1", b"[::1]:8000", b"localhost:8000", b"192.168.1.5")
    for server, host in product(running.values(), hosts):
        assert await ask(server, "POST", "/mcp", b"Host: %b\r\n" % host) not in (403, 421)


async def test_cross_site_posts_without_origin_get_403(running: dict[bool, RunningServer]) -> None:
    """CVE-2026-33252."""
    fields = b"Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"
    assert await ask(running[True], "POST", "/mcp", fields) == 403
