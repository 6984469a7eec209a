import asyncio
from typing import Any

import pytest

from http_peer import request, serve
from millstream import Server, Settings

WAYS = pytest.mark.parametrize("lane", [True, False], ids=["lane", "plain"])
KEY = "the one key of the tests of cross-site streams"
IMAGE = b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\nAccept: image/avif,*/*\r\n"
FRAME = b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\nAccept: text/html,*/*\r\n"
ELSEWHERE = pytest.mark.parametrize("extra", [IMAGE, FRAME], ids=["image", "frame"])


async def first_events(peer: Any, count: int) -> bytes:
    """The beginning of a stream, up to so many events."""
    raw = b""
    while raw.count(b"\n\n") < count:
        raw += await peer.chunk()
    return raw


@WAYS
@ELSEWHERE
async def test_cross_site_images_do_not_empty_a_mailbox(lane: bool, extra: bytes) -> None:
    server = Server("hub", version="1", settings=Settings(secret_key=KEY), serve=("hub",))
    async with server.running(), serve(server, lane=lane) as running:
        await server.hub.send("alice", "for alice")
        image = await running.connect()
        await image.send(request("GET", "/mcp/sse/alice", extra=extra))
        assert (await image.reply())[0] == 403
        alice = await running.connect()
        await alice.send(request("GET", "/mcp/sse/alice", extra=b"Accept: text/event-stream\r\n"))
        assert (await alice.head())[0] == 200
        raw = await first_events(alice, 3)
        assert b"for alice" in raw
        assert b"gap" not in raw


@WAYS
@ELSEWHERE
async def test_cross_site_images_do_not_announce_presence(lane: bool, extra: bytes) -> None:
    server = Server("hub", version="1", settings=Settings(secret_key=KEY), serve=("hub",))
    async with server.running(), serve(server, lane=lane) as running:
        watcher = await running.connect()
        await watcher.send(request("GET", "/events?channel=chat,$presence.chat"))
        assert (await watcher.head())[0] == 200
        image = await running.connect()
        await image.send(request("GET", "/events?channel=chat&client_id=mallory&name=Mallory", extra=extra))
        assert (await image.reply())[0] == 403
        assert await server.hub.presence("chat") == []
        await server.hub.publish("chat", "the next thing")
        raw = await first_events(watcher, 2)
        assert b"the next thing" in raw
        assert b"mallory" not in raw


@WAYS
async def test_same_site_and_allowed_pages_open_streams(lane: bool) -> None:
    settings = Settings(secret_key=KEY, allowed_origins=("https://app.example",))
    server = Server("hub", version="1", settings=settings, serve=("hub",))
    heads = (
        b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n",
        b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nOrigin: https://app.example\r\n",
        b"Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n",
        b"",
    )
    async with server.running(), serve(server, lane=lane) as running:
        for extra in heads:
            peer = await running.connect()
            await peer.send(request("GET", "/events", extra=extra + b"Accept: text/event-stream\r\n"))
            assert (await peer.head())[0] == 200
            peer.close()
            await asyncio.sleep(0)


@WAYS
async def test_rejected_streams_have_no_effect(lane: bool) -> None:
    server = Server("hub", version="1", settings=Settings(secret_key=KEY), serve=("hub",))
    async with server.running(), serve(server, lane=lane) as running:
        await server.hub.send("alice", "for alice")
        for path in ("/mcp/sse/alice", "/events?channel=chat&client_id=alice"):
            peer = await running.connect()
            await peer.send(request("GET", path, extra=b"Accept: image/png\r\n"))
            assert (await peer.reply())[0] == 406
        assert await server.hub.presence("chat") == []
        assert server.hub.stats().published == 1
        alice = await running.connect()
        await alice.send(request("GET", "/mcp/sse/alice"))
        await alice.head()
        assert b"for alice" in await first_events(alice, 3)
