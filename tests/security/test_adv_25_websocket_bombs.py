import asyncio
import contextlib
import json
import struct
import zlib

import pytest

from cases import for_each
from four_workers import FOUR, ON_FOUR
from millstream._http.message import MAX_FRAGMENTS, MAX_UNREAD
from millstream.hub import HubLimits
from patience import WAIT
from socket_world import PING, TEXT, TRANSPORTS, RawSocket, World, frame, world

ASK = b'{"type":"ping"}'


async def still_serves(app: World) -> None:
    """Check that other clients still get replies."""
    other = await app.raw()
    await other.send(frame(TEXT, ASK))
    assert await other.message() == {"type": "pong"}


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
async def test_compressed_frames_are_protocol_errors(way: str) -> None:
    """CVE-2026-77528, CVE-2026-116579."""
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(64 * 2**20)) + packer.flush(zlib.Z_SYNC_FLUSH)
    async with world(way) as app:
        peer = await app.handshake(b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
        assert b"sec-websocket-extensions" not in (await app.opened(peer))[1]
        socket = RawSocket(peer)
        await socket.message()
        await socket.send(frame(TEXT, bomb[:-4], rsv=4))
        assert (await socket.wait_for_close())[0] == 1002
        await still_serves(app)


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("payload", [b"", b"x"])
async def test_messages_with_too_many_fragments_are_rejected(payload: bytes, way: str) -> None:
    """CVE-2026-12151."""
    async with world(way) as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, payload, fin=False), *[frame(0, payload, fin=False)] * 100_000)
        assert await socket.wait_for_close() == (1008, "too many fragments")
        await still_serves(app)


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_messages_with_the_maximum_number_of_fragments_are_accepted(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        rest = [frame(0, fin=False)] * (MAX_FRAGMENTS - 2)
        await socket.send(frame(TEXT, ASK, fin=False), *rest, frame(0))
        assert await socket.message() == {"type": "pong"}
        await socket.send(frame(TEXT, ASK, fin=False), *rest, frame(0, fin=False), frame(0))
        assert (await socket.wait_for_close())[0] == 1008


@pytest.mark.parametrize("way", [*TRANSPORTS, ON_FOUR])
@for_each("size", [2**20 + 1, 2**31, 2**62])
async def test_oversized_frame_lengths_are_rejected_immediately(size: int, way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, length=b"\x7f" + struct.pack("!Q", size)))
        assert (await socket.wait_for_close())[0] == 1009
        await still_serves(app)


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_message_size_limit_applies_to_the_sum_of_fragments(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        part = b" " * 2**18
        await socket.send(frame(TEXT, part, fin=False), *[frame(0, part, fin=False)] * 3, frame(0, b" "))
        assert (await socket.wait_for_close())[0] == 1009


async def test_peers_that_ping_without_reading_are_dropped() -> None:
    async with world(write_timeout=0.5) as app:
        socket = await app.raw(small_buffer=True)
        pings = frame(PING, b"x" * 125) * 2000
        async with asyncio.timeout(WAIT):
            with contextlib.suppress(ConnectionError):
                while app.running.state.connections:
                    sizes = [each.transport.get_write_buffer_size() for each in app.running.state.connections]  # type: ignore[union-attr]
                    assert max(sizes) < 2 * MAX_UNREAD
                    await socket.send(pings)
                    await asyncio.sleep(0)
        await app.until(lambda: not app.running.state.connections and len(app.runtime.streams) == 0)
        await still_serves(app)


async def test_peers_that_call_without_reading_are_paused() -> None:
    async with world() as app:
        socket = await app.raw(small_buffer=True)
        call = frame(TEXT, b'{"type":"mcp_call","tool":"text","arguments":{"size":1000000}}')
        done: list[int] = []
        app.runtime.dispatcher.observe = lambda call, seconds, answer: done.append(len(answer))
        await socket.send(call * 500)
        await app.until(lambda: bool(done))
        for _ in range(2000):
            await asyncio.sleep(0)
        assert len(done) < 50
        await still_serves(app)


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("body", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_websocket_handshakes_with_a_body_are_rejected(body: bytes, way: str) -> None:
    """CVE-2026-69243."""
    async with world(way) as app:
        peer = await app.handshake(body)
        await peer.send(b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status, _ = await app.opened(peer)
        assert status == 400
        assert b"101" not in await peer.rest()


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_malformed_handshakes_are_answered_and_closed(way: str) -> None:
    async with world(way) as app:
        peer = await app.handshake(b"Sec-WebSocket-Extensions: %b\r\n" % (b"a" * 9000))
        assert (await peer.reply())[0] == 400
        assert await peer.rest() == b""
        if way != FOUR:
            await app.until(lambda: not app.running.state.connections)


async def test_peers_that_ignore_pings_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._http.server.websocket.PING_TIMEOUT", 0.05)
    call = {"type": "mcp_call", "tool": "text", "arguments": {"size": 10_000_000}}
    async with world(write_timeout=0.1, table_options={"heartbeat": 0.05}) as app:
        for sent in (b"", frame(TEXT, json.dumps(call).encode())):
            peer = await app.handshake(small_buffer=True)
            assert (await app.opened(peer))[0] == 101
            with contextlib.suppress(ConnectionError):
                await RawSocket(peer).send(sent)
            await app.until(lambda: not app.running.state.connections and len(app.runtime.streams) == 0)


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("extra", [b"", b"Sec-WebSocket-Protocol: mcp\r\n"])
async def test_deep_json_is_a_parse_error(extra: bytes, way: str) -> None:
    async with world(way) as app:
        peer = await app.handshake(extra)
        assert (await app.opened(peer))[0] == 101
        socket = RawSocket(peer)
        if not extra:
            await socket.message()
        for text in (b"[" * 500_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
            await socket.send(frame(TEXT, text))
            assert (await socket.message())["error"]["code"] == -32700


async def test_channels_per_socket_are_bounded() -> None:
    async with world(limits=HubLimits(max_channels_per_subscriber=64)) as app:
        socket = await app.raw()
        await socket.send(*(frame(TEXT, b'{"type":"subscribe","channel":"c%d"}' % n) for n in range(100)))
        await socket.send(frame(TEXT, ASK))
        kinds: list[str] = []
        while (message := await socket.message())["type"] != "pong":
            kinds.append(message["type"])
        assert (kinds.count("subscribed"), kinds.count("error")) == (64, 36)
        assert app.hub.stats().subscribers == 64


async def test_repeated_subscriptions_leave_nothing_behind() -> None:
    async with world() as app:
        socket = await app.raw()
        pair = frame(TEXT, b'{"type":"subscribe"}') + frame(TEXT, b'{"type":"unsubscribe"}')
        await socket.send(pair * 300, frame(TEXT, ASK))
        while (await socket.message())["type"] != "pong":
            pass
        assert app.hub.stats().subscribers == 0
        (outbox,) = app.route._sockets
        assert len(outbox._callbacks) < 10


@pytest.mark.many
@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_invalid_message_floods_are_answered_at_reading_speed(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, b"{") * 3000, frame(TEXT, json.dumps({"type": "ping"}).encode()))
        kinds = [(await socket.message())["type"] for _ in range(3001)]
        assert kinds == ["error"] * 3000 + ["pong"]
