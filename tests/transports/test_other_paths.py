import asyncio
from typing import Any

from cases import for_each
from http_peer import request, serve
from millstream import Server
from patience import WAIT

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
    scope["client"] = ("127.0.0.1", 1)
    async with server.running():
        await asyncio.wait_for(server(scope, inbox.get, send), WAIT)
    return sent


@for_each("path", ["/health", "/livez", "/readyz", "/mcp", "/events"])
async def test_preflight_works_on_every_route(path: str) -> None:
    start, _ = await answers("http", path, **ASKS)
    head = dict(start["headers"])
    assert (start["status"], head[b"access-control-allow-origin"]) == (204, ORIGIN.encode())
    assert b"access-control-allow-methods" in head


async def test_options_requests_to_probes_list_methods_and_reject_foreign_preflights() -> None:
    for headers, status in (({}, 204), ({**ASKS, "origin": "https://evil.example"}, 405)):
        start, _ = await answers("http", "/health", **headers)
        assert start["status"] == status
        assert b"GET" in dict(start["headers"])[b"allow"]
        assert b"access-control-allow-origin" not in dict(start["headers"])


@for_each("path", ["/health", "/livez", "/readyz"])
@for_each("method", ["GET", "HEAD", "OPTIONS"])
@for_each(
    ("head", "allowed"),
    [
        (b"Origin: http://localhost:3000\r\n", True),
        (b"Origin: https://evil.example\r\n", False),
        (b"Origin: http://localhost:3000\r\nOrigin: http://localhost:3000\r\n", False),
        (b"", False),
    ],
    ids=["allowed", "not allowed", "two", "none"],
)
async def test_probes_have_the_same_cors_headers_under_every_server(
    path: str, method: str, head: bytes, allowed: bool
) -> None:
    found: list[tuple[int, dict[bytes, bytes]]] = []
    for lane in (True, False):
        server = Server("paths")
        async with server.running(), serve(server, lane=lane) as running:
            peer = await running.connect()
            extra = head + b"Access-Control-Request-Method: GET\r\n" if method == "OPTIONS" else head
            await peer.send(request(method, path, extra=extra))
            status, headers, _ = await peer.reply(head_only=method == "HEAD")
            found.append((status, {name: value for name, value in headers.items() if b"allow-" in name}))
    assert found[0] == found[1]
    status, headers = found[0]
    assert headers.get(b"access-control-allow-origin") == (ORIGIN.encode() if allowed else None)
    assert status == (405 if method == "OPTIONS" and not allowed else 204 if method == "OPTIONS" else 200)


async def test_head_never_opens_a_websocket() -> None:
    """RFC 9110 §9.3.2: the reply to HEAD has no body, but that of a refused handshake does."""
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    offer += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    server = Server("paths", serve="hub")
    async with server.running(), serve(server) as running:
        peer = await running.connect()
        for path, expected in (("/ws", 426), ("/livez", 200)):
            await peer.send(request("HEAD", path, extra=offer))
            assert (await peer.reply(head_only=True))[0] == expected


async def test_websocket_handshake_at_other_paths_gets_404() -> None:
    start, body = await answers("websocket", "/nowhere", extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert b"isn't a WebSocket" in body["body"]
    assert [message["type"] for message in await answers("websocket", "/nowhere")] == ["websocket.close"]


UPGRADE = b"Upgrade: websocket\r\n"
HANDSHAKES = {
    "a handshake": b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "a handshake of which a proxy took the connection option": b"",
}


@for_each("handshake", HANDSHAKES)
@for_each(("parts", "where"), [(("hub",), b"Use /ws."), ((), b"start it with --serve hub.")])
@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_websocket_handshake_at_mcp_names_the_right_path(
    lane: bool, parts: tuple[str, ...], where: bytes, handshake: str
) -> None:
    """Regression: it got 200 and an event stream, which RFC 9110 §7.8 allows but WebSocket clients can't read."""
    server = Server("paths", serve=parts)
    async with server.running(), serve(server, lane=lane, ws="auto" if parts else "none") as running:
        for path in ("/mcp", "/mcp/", *(("/events",) if parts else ())):
            peer = await running.connect()
            head = b"Accept: text/event-stream\r\n" + UPGRADE + HANDSHAKES[handshake]
            await peer.send(request("GET", path, extra=head))
            status, _, body = await peer.reply()
            assert (status, body.partition(b". ")[0]) == (404, b"This path isn't a WebSocket")
            assert where in body


@for_each("lane", [True, False], ids=["lane", "asgi"])
async def test_unknown_upgrades_are_ignored(lane: bool) -> None:
    """RFC 9110 §7.8."""
    server = Server("paths")
    async with server.running(), serve(server, lane=lane) as running:
        peer = await running.connect()
        await peer.send(request("GET", "/mcp", extra=b"Accept: text/event-stream\r\nUpgrade: h2c\r\n"))
        assert (await peer.reply(head_only=True))[0] == 200
        peer = await running.connect()
        await peer.send(request("POST", "/mcp", b"{}", extra=b"Content-Type: application/json\r\n" + UPGRADE))
        assert (await peer.reply())[0] == 400
