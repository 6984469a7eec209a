"""What answers only on this machine until there is authentication: the pages, `/publish`, `/metrics`."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from millstream import Server

HERE_ONLY = ["/dashboard", "/dashboard/events", "/chat", "/chat/members", "/inspect", "/metrics"]
OUTSIDE = ("10.0.0.5", 1)
HERE = ("127.0.0.1", 1)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with everything."""
    mcp = Server("everywhere", serve="all")
    yield mcp
    await mcp.stop()


def client(app: Any, peer: tuple[str, int]) -> httpx2.AsyncClient:
    """A client at an address."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, client=peer), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", HERE_ONLY)
async def test_a_public_bind_answers_403(server: Server, path: str) -> None:
    """The issue: only on loopback binds."""
    server.loopback_bind = False
    async with client(server, HERE) as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.post("/publish", json={"data": 1})).status_code == 403


@pytest.mark.parametrize("path", HERE_ONLY)
async def test_under_a_foreign_server_the_peer_decides(server: Server, path: str) -> None:
    """docs/reference/routes.md: where nobody said what the server is bound to."""
    async with client(server, OUTSIDE) as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.post("/publish", json={"data": 1})).status_code == 403


async def test_the_documentation_has_its_files_wherever_it_is_served(server: Server) -> None:
    """`/docs` belongs to REST and answers on every bind; without its files it is an empty page."""
    server.loopback_bind = False
    async with client(server, HERE) as http:
        assert (await http.get("/docs")).status_code == 200
        for name in ("base.css", "docs.css", "docs.js"):
            assert (await http.get(f"/assets/{name}")).status_code == 200, name


async def test_publishing_over_a_socket_is_for_this_machine_as_it_is_over_http(server: Server) -> None:
    """docs/reference/websocket.md: where `/publish` answers 403, `publish` fails too, whatever server is around us."""
    async with client(server, OUTSIDE) as http:
        assert (await http.post("/publish", json={"data": 1})).status_code == 403
    said = await dialect(server, '{"type":"publish","data":1}')
    assert '"error"' in said[-1]


async def dialect(app: Any, message: str) -> list[str]:
    """What a socket from outside is sent: the greeting, and the answer to one message."""
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

    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "client": OUTSIDE, "subprotocols": []}
    await app(scope, receive, send)
    return said
