"""What a whole server says to preflights of its probes, and to handshakes where there is no WebSocket."""

import asyncio
from typing import Any

import pytest

from millstream import Server

ORIGIN = "http://localhost:3000"
ASKS = {"origin": ORIGIN, "access-control-request-method": "GET"}


async def answers(kind: str, path: str, *, extensions: Any = None, **headers: str) -> list[Any]:
    """What a server sends to one request, or handshake, without a socket."""
    server = Server("paths", serve=("hub",))
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    inbox.put_nowait({"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1", **headers}.items()]
    scope = {"type": kind, "path": path, "method": "OPTIONS", "headers": fields, "extensions": extensions}
    async with server.running():
        await asyncio.wait_for(server(scope, inbox.get, send), 5)
    return sent


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/mcp", "/events"])
async def test_a_preflight_is_answered_on_every_route_also_those_of_the_probes(path: str) -> None:
    """Issue 3; a fixed defect: the probes said 405, and that they take OPTIONS."""
    start, _ = await answers("http", path, **ASKS)
    head = dict(start["headers"])
    assert (start["status"], head[b"access-control-allow-origin"]) == (204, ORIGIN.encode())
    assert b"access-control-allow-methods" in head


async def test_other_options_requests_of_a_probe_are_still_405() -> None:
    """No preflight without an Origin that is allowed."""
    for headers in ({}, {**ASKS, "origin": "https://evil.example"}):
        start, _ = await answers("http", "/health", **headers)
        assert start["status"] == 405
        assert b"access-control-allow-origin" not in dict(start["headers"])


async def test_a_handshake_at_a_path_without_a_websocket_is_404_where_the_server_can_say_so() -> None:
    """ASGI: the extension `websocket.http.response`; without it closing before the accept is a 403."""
    start, body = await answers("websocket", "/nowhere", extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert b"no WebSocket" in body["body"]
    assert [message["type"] for message in await answers("websocket", "/nowhere")] == ["websocket.close"]
