"""Advisory 3: WebSockets without a Host and Origin check (CVE-2026-59950), which let any page use a local server."""

import json
from typing import Any

import pytest

from cases import for_each
from four_workers import ON_FOUR
from http_messages import HttpRequest
from http_peer import HostPolicy
from millstream import Principal
from socket_world import TEXT, TRANSPORTS, UPGRADE, RawSocket, World, frame, recv_json, world

EVIL = [
    b"https://evil.example",
    b"http://evil.example:80",
    b"null",
    b"http://127.0.0.1.evil.example",
    b"http://localhost.evil.example",
    b"http://evil.example#http://127.0.0.1",
    b"http://127.0.0.1@evil.example",
    b"file://",
    b"chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    b"",
    b"http://127.0.0.1, http://127.0.0.1",
]
FINE = [b"http://127.0.0.1:3000", b"http://localhost", b"https://[::1]:8443", b"HTTP://LOCALHOST:5"]


async def refusal(app: World, extra: bytes, head: bytes = UPGRADE) -> tuple[int, bytes]:
    """Return status and text of a refused handshake, and check that no socket was accepted or counted."""
    peer = await app.handshake(extra, head)
    status, headers = await app.opened(peer)
    body = await peer.reader.readexactly(int(headers[b"content-length"]))
    assert await peer.rest() == b""
    if not app.signed_in:
        assert len(app.runtime.streams) == 0
        assert app.hub.stats().subscribers == 0
    return status, body


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
@for_each("origin", EVIL)
async def test_foreign_pages_are_rejected_before_the_socket_opens(origin: bytes, way: str) -> None:
    """RFC 6455 §10.2."""
    async with world(way) as app:
        status, body = await refusal(app, b"Origin: %b\r\n" % origin)
        assert status == 403
        assert b"allowed_origins" in body


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
@for_each("origin", FINE)
async def test_loopback_pages_may_connect_to_a_loopback_bind(origin: bytes, way: str) -> None:
    async with world(way) as app:
        peer = await app.handshake(b"Origin: %b\r\n" % origin)
        assert (await app.opened(peer))[0] == 101
        assert (await RawSocket(peer).message())["type"] == "connected"


async def test_loopback_pages_are_foreign_on_a_public_bind() -> None:
    async with world(allowed_hosts=("api.example",), allowed_origins=("https://app.example",)) as app:
        settings = app.server.settings
        app.route._policy = HostPolicy(settings.allowed_hosts, settings.allowed_origins, loopback_bind=False)
        head = UPGRADE.replace(b"127.0.0.1", b"api.example")
        for origin, expected in [
            (b"http://localhost:3000", 403),
            (b"http://app.example", 403),
            (b"https://app.example", 101),
            (b"http://api.example", 101),
        ]:
            peer = await app.handshake(b"Origin: %b\r\n" % origin, head)
            assert (await app.opened(peer))[0] == expected, origin


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
@for_each("host", [b"evil.example", b"evil.example:80", b"127.0.0.1.evil.example", b"localhost.evil.co"])
async def test_rebound_names_are_rejected(host: bytes, way: str) -> None:
    async with world(way) as app:
        head = UPGRADE.replace(b"127.0.0.1", host)
        status, body = await refusal(app, b"Origin: http://%b\r\n" % host, head)
        assert status == 421
        assert b"allowed_hosts" in body


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
async def test_duplicate_origins_are_rejected(way: str) -> None:
    async with world(way) as app:
        status, _ = await refusal(app, b"Origin: http://127.0.0.1\r\nOrigin: https://evil.example\r\n")
        assert status == 400


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_cross_site_requests_without_origin_are_rejected(way: str) -> None:
    async with world(way) as app:
        status, _ = await refusal(app, b"Sec-Fetch-Site: cross-site\r\n")
        assert status == 403


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
async def test_subprotocol_does_not_bypass_the_checks(way: str) -> None:
    async with world(way) as app:
        status, _ = await refusal(app, b"Origin: https://evil.example\r\nSec-WebSocket-Protocol: mcp\r\n")
        assert status == 403


async def test_frames_after_a_rejected_handshake_are_ignored() -> None:
    async with world() as app:
        call = frame(TEXT, json.dumps({"type": "publish", "data": "evil"}).encode())
        peer = await app.handshake(b"Origin: https://evil.example\r\n")
        await peer.send(call)
        assert (await app.opened(peer))[0] == 403
        assert app.hub.stats().published == 0


async def test_credentials_in_urls_are_ignored() -> None:
    seen: list[Any] = []

    async def authenticate(request: HttpRequest) -> Principal | None:
        seen.append((request.query, request.path, request.headers.get(b"cookie")))
        return None

    async with world(guard=authenticate) as app, app.client(path="/ws?token=s3cret") as socket:
        await recv_json(socket)
        assert seen == [(b"", "/ws", None)]
