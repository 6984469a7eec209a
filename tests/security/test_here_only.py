from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from msgspec.structs import replace

from cases import for_each
from millstream import Server

HERE_ONLY = [
    "/dashboard", "/dashboard/events", "/dashboard/history", "/dashboard/calls", "/dashboard/readers",
    "/dashboard/audit", "/chat", "/inspect", "/inspect/servers", "/inspect/via/1",
    "/gateway", "/gateway/upstreams", "/gateway/items", "/metrics",
]  # fmt: skip
OUTSIDE = ("10.0.0.5", 1)
HERE = ("127.0.0.1", 1)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Yield a server with all features."""
    mcp = Server("everywhere", serve="all")
    mcp.upstream("small", Server("small"))
    yield mcp
    await mcp.stop()


def client(app: Any, peer: tuple[str, int]) -> httpx2.AsyncClient:
    """Yield a client with a certain address."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, client=peer), base_url="http://127.0.0.1")


@for_each("path", HERE_ONLY)
async def test_loopback_only_paths_get_403_on_a_public_bind(server: Server, path: str) -> None:
    server.runtimes.bind = replace(server.runtimes.bind, loopback=False)
    async with client(server, HERE) as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.post("/publish", json={"data": 1})).status_code == 403


@for_each("path", HERE_ONLY)
async def test_peer_address_decides_under_other_asgi_servers(server: Server, path: str) -> None:
    async with client(server, OUTSIDE) as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.post("/publish", json={"data": 1})).status_code == 403


FORWARDED = {
    "x-forwarded-for": "203.0.113.9",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "mcp.example.com",
    "forwarded": "for=203.0.113.9",
    "via": "1.1 proxy",
    "x-real-ip": "203.0.113.9",
    "host": "192.0.2.7:8000",
}


@for_each("bind", [None, True])
@for_each("name", FORWARDED)
async def test_local_proxy_does_not_make_pages_public(server: Server, name: str, bind: bool | None) -> None:
    server.runtimes.bind = replace(server.runtimes.bind, loopback=bind)
    headers = {name: FORWARDED[name]}
    async with client(server, HERE) as http:
        for path in HERE_ONLY:
            assert (await http.get(path, headers=headers)).status_code == 403, path
        assert (await http.post("/publish", json={"data": 1}, headers=headers)).status_code == 403
        assert (await http.get("/docs", headers=headers)).status_code == 200
        assert (await http.get("/dashboard")).status_code == 200
    said = await dialect(server, '{"type":"publish","data":1}', HERE, (name.encode(), FORWARDED[name].encode()))
    assert '"error"' in said[-1]
    said = await dialect(server, '{"type":"publish","data":1}', HERE)
    assert '"published"' in said[-1]


async def test_documentation_assets_are_served_everywhere(server: Server) -> None:
    server.runtimes.bind = replace(server.runtimes.bind, loopback=False)
    async with client(server, HERE) as http:
        assert (await http.get("/docs")).status_code == 200
        for name in ("base.css", "docs/docs.css", "docs/page.js"):
            assert (await http.get(f"/assets/{name}")).status_code == 200, name


async def test_socket_publishing_is_loopback_only(server: Server) -> None:
    async with client(server, OUTSIDE) as http:
        assert (await http.post("/publish", json={"data": 1})).status_code == 403
    said = await dialect(server, '{"type":"publish","data":1}')
    assert '"error"' in said[-1]


@for_each(("peer", "expected"), [(HERE, True), (OUTSIDE, False)])
async def test_peer_address_decides_on_loopback_origins_under_other_servers(
    server: Server, peer: tuple[str, int], expected: bool
) -> None:
    fields = {"origin": "http://localhost:3000", "accept": "application/json, text/event-stream"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with client(server, peer) as http:
        reply = await http.post("/mcp", json=ping, headers=fields)
        assert (reply.status_code == 200, "access-control-allow-origin" in reply.headers) == (expected, expected)
        for path in ("/mcp", "/health"):
            preflight = await http.options(path, headers={**fields, "access-control-request-method": "POST"})
            assert (preflight.status_code == 204) == expected
    said = await dialect(server, '{"type":"ping"}', peer, (b"origin", b"http://localhost:3000"))
    assert bool(said) == expected


async def dialect(app: Any, message: str, peer: tuple[str, int] = OUTSIDE, *fields: tuple[bytes, bytes]) -> list[str]:
    """Return the greeting of a socket and the reply to one message; empty if it's refused."""
    incoming = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": message},
        {"type": "websocket.disconnect", "code": 1000},
    ]
    said: list[str] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "websocket.send":
            said.append(event["text"])

    headers = list({b"host": b"127.0.0.1", **dict(fields)}.items())
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "client": peer, "subprotocols": []}
    await app(scope, receive, send)
    return said


async def test_proxy_that_hides_its_clients_is_rejected_and_logged_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Before 1.29.7, nginx with only a `proxy_pass` sends HTTP/1.0, a loopback Host, and no header about its client."""

    class OldClient(httpx2.ASGITransport):
        async def handle_async_request(self, request: Any) -> Any:
            app = self.app

            async def over_http_1_0(scope: Any, receive: Any, send: Any) -> None:
                await app({**scope, "http_version": "1.0"}, receive, send)

            self.app = over_http_1_0
            try:
                return await super().handle_async_request(request)
            finally:
                self.app = app

    old = OldClient(server, client=HERE)  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=old, base_url="http://127.0.0.1") as http:
        for path in HERE_ONLY:
            assert (await http.get(path)).status_code == 403, path
        assert (await http.post("/publish", json={"data": 1})).status_code == 403
        assert (await http.get("/docs")).status_code == 200
        assert "store" not in (await http.get("/health")).json()
    assert caplog.text.count("proxy_http_version 1.1;") == 1
