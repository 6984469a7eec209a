"""RFC 6455 on our socket: fragments, masks, reserved bits, control frames, close codes, UTF-8, opening handshakes.

The cases follow the groups of the Autobahn suite. Those that only our protocol class bounds are under `security`.
"""

import asyncio
import json
import struct

from cases import for_each
from http_messages import HttpRequest
from http_peer import HEAD
from socket_world import BINARY, CLOSE, PING, PONG, TEXT, TRANSPORTS, UPGRADE, RawSocket, frame, world

ASK = b'{"type":"ping","id":"\xc3\xa9"}'
PONG_MESSAGE = {"type": "pong", "id": "é"}
CONT = 0


def code(number: int, reason: bytes = b"") -> bytes:
    """The payload of a close frame."""
    return struct.pack("!H", number) + reason


# What is answered

GOOD = {
    "one frame": [frame(TEXT, ASK)],
    "two fragments": [frame(TEXT, ASK[:9], fin=False), frame(CONT, ASK[9:])],
    "fragments of one byte": [
        frame(TEXT, ASK[:1], fin=False),
        *(frame(CONT, ASK[n : n + 1], fin=False) for n in range(1, len(ASK))),
        frame(CONT),
    ],
    "a character across two fragments": [frame(TEXT, ASK[:22], fin=False), frame(CONT, ASK[22:])],
    "an empty first fragment": [frame(TEXT, fin=False), frame(CONT, ASK)],
    "an empty last fragment": [frame(TEXT, ASK, fin=False), frame(CONT)],
    "a longer length than is needed": [frame(TEXT, ASK, length=b"\x7e" + struct.pack("!H", len(ASK)))],
    "a mask of zeros is still a mask": [b"\x81" + bytes((0x80 | len(ASK),)) + bytes(4) + ASK],
    "a pong nobody asked for": [frame(PONG, b"x"), frame(TEXT, ASK)],
    "126 bytes": [frame(TEXT, ASK + b" " * (126 - len(ASK)))],
    "65535 bytes": [frame(TEXT, ASK + b" " * (65535 - len(ASK)))],
    "65536 bytes": [frame(TEXT, ASK + b" " * (65536 - len(ASK)))],
    "1 MiB": [frame(TEXT, ASK + b" " * (2**20 - len(ASK)))],
}


@for_each("way", TRANSPORTS)
@for_each("frames", GOOD.values(), ids=GOOD.keys())
async def test_valid_messages_are_answered(frames: list[bytes], way: str) -> None:
    """RFC 6455 §5.4 and §5.2; Autobahn 1, 5, 9."""
    async with world(way) as app:
        socket = await app.raw()
        await socket.send(*frames)
        assert await socket.message() == PONG_MESSAGE


@for_each("way", TRANSPORTS)
async def test_messages_may_arrive_byte_by_byte(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        for byte in frame(TEXT, ASK[:9], fin=False) + frame(PING, b"p") + frame(CONT, ASK[9:]):
            await socket.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await socket.frame() == (PONG, b"p")
        assert await socket.message() == PONG_MESSAGE


@for_each("payload", [b"", b"p", b"\x00\xff", b"x" * 125], ids=len)
async def test_pong_returns_the_payload_of_the_ping(payload: bytes) -> None:
    """RFC 6455 §5.5.3."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(PING, payload))
        assert await socket.frame() == (PONG, payload)


async def test_largest_message_fits_in_4_kib_fragments() -> None:
    async with world(max_message=2**22) as app:
        socket = await app.raw()
        parts = [frame(CONT, b" " * 4096, fin=False)] * 1022
        await socket.send(frame(TEXT, ASK + b" " * (4096 - len(ASK)), fin=False), *parts, frame(CONT, b" " * 4096))
        assert await socket.message() == PONG_MESSAGE
        await socket.send(frame(TEXT, ASK, fin=False), *[frame(CONT, fin=False)] * 1024)
        assert await socket.wait_for_close() == (1008, "too many fragments")


async def test_ping_between_fragments_is_answered_first() -> None:
    """RFC 6455 §5.4."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, ASK[:9], fin=False), frame(PING, b"p"), frame(CONT, ASK[9:]))
        assert await socket.frame() == (PONG, b"p")
        assert await socket.message() == PONG_MESSAGE


async def test_many_messages_in_one_packet_are_answered_in_order() -> None:
    """Autobahn 9: frames are not packets."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(*(frame(TEXT, b'{"type":"ping","id":%d}' % n) for n in range(500)))
        assert [(await socket.message())["id"] for _ in range(500)] == list(range(500))


def upgrade(rest: bytes = b"") -> bytes:
    """A whole opening handshake, and what the client sends in the same packet."""
    return b"GET /ws HTTP/1.1\r\n" + UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + rest


async def test_frames_in_the_packet_of_the_handshake_are_answered() -> None:
    async with world() as app:
        ask = frame(TEXT, ASK)
        for early, later in ((ask, b""), (frame(PING, b"p"), ask), (ask[:3], ask[3:])):
            socket = RawSocket(await app.running.connect())
            await socket.peer.send(upgrade(early))
            assert (await socket.peer.head())[0] == 101
            await socket.send(later)
            said = [await socket.frame() for _ in range(3 if early[:1] == b"\x89" else 2)]
            assert len(said) == 2 or (PONG, b"p") in said
            assert json.loads(said[-1][1]) == PONG_MESSAGE
            await socket.send(ask)
            assert await socket.message() == PONG_MESSAGE


@for_each("together", [True, False], ids=["in its packet", "behind it"])
async def test_handshake_reply_comes_first(together: bool) -> None:
    """RFC 6455 §4.2.2."""
    asked, known = asyncio.Event(), asyncio.Event()

    async def guard(request: HttpRequest) -> None:
        asked.set()
        await known.wait()

    async with world(guard=guard) as app:
        socket = RawSocket(await app.running.connect())
        early = frame(PING, b"p") + frame(TEXT, ASK)
        await socket.peer.send(upgrade(early if together else b""))
        await asked.wait()
        if not together:
            await socket.send(early)
            (line,) = app.running.state.connections
            await app.until(lambda: line._ahead == early)
        known.set()
        assert (await socket.peer.head())[0] == 101
        said = [await socket.frame() for _ in range(3)]
        assert (PONG, b"p") in said
        assert json.loads(said[-1][1]) == PONG_MESSAGE


async def test_invalid_frame_in_the_handshake_packet_closes_with_its_code() -> None:
    """RFC 6455 §5.1."""
    async with world() as app:
        socket = RawSocket(await app.running.connect())
        await socket.peer.send(upgrade(frame(TEXT, ASK, mask=False)))
        assert (await socket.peer.head())[0] == 101
        assert (await socket.wait_for_close())[0] == 1002


# What ends the connection

WRONG = {
    "no mask": (frame(TEXT, ASK, mask=False), 1002),
    "no mask on a ping": (frame(PING, mask=False), 1002),
    "reserved bit 1": (frame(TEXT, ASK, rsv=4), 1002),
    "reserved bit 2": (frame(TEXT, ASK, rsv=2), 1002),
    "reserved bit 3": (frame(TEXT, ASK, rsv=1), 1002),
    "a reserved bit on a ping": (frame(PING, rsv=4), 1002),
    **{f"reserved opcode {n}": (frame(n, ASK), 1002) for n in (3, 7, 11, 15)},
    "a ping in fragments": (frame(PING, b"p", fin=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a close of 126 bytes": (frame(CLOSE, code(1000, b"x" * 124)), 1002),
    "a continuation of nothing": (frame(CONT, ASK), 1002),
    "text inside of text": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "a continuation after the end": (frame(TEXT, ASK, fin=False) + frame(CONT) + frame(CONT), 1002),
    "a close with one byte": (frame(CLOSE, b"\x03"), 1002),
    **{f"close code {n}": (frame(CLOSE, code(n)), 1002) for n in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)},
    "a close with text that is no UTF-8": (frame(CLOSE, code(1000, b"\xff")), 1007),
    "text that is no UTF-8": (frame(TEXT, b"\xce\xba\xe1\xbd\xed\xa0\x80"), 1007),
    "half a character": (frame(TEXT, b"\xc3"), 1007),
    "half a character in the last fragment": (frame(TEXT, b"a", fin=False) + frame(CONT, b"\xf0\x9f"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "a binary message": (frame(BINARY, ASK), 1003),
    "an empty binary message": (frame(BINARY), 1003),
    "one byte over 1 MiB": (frame(TEXT, b" " * (2**20 + 1)), 1009),
    "1 MiB and a byte in fragments": (frame(TEXT, b" " * 2**20, fin=False) + frame(CONT, b" "), 1009),
    "a length of 4 GiB": (frame(TEXT, length=b"\x7f" + struct.pack("!Q", 2**32)), 1009),
    "a length with the highest bit": (frame(TEXT, length=b"\x7f" + struct.pack("!Q", 2**63)), 1009),
}


@for_each("way", TRANSPORTS)
@for_each(("frames", "expected"), WRONG.values(), ids=WRONG.keys())
async def test_invalid_frame_closes_with_its_code(frames: bytes, expected: int, way: str) -> None:
    """RFC 6455 §5, §7.4.1, §8.1; Autobahn 3, 4, 6, 7."""
    async with world(way) as app:
        other, socket = await app.raw(), await app.raw()
        await socket.send(frames)
        assert (await socket.wait_for_close())[0] == expected
        await other.send(frame(TEXT, ASK))
        assert await other.message() == PONG_MESSAGE
        await app.until(lambda: len(app.runtime.streams) == 1)


@for_each("number", [1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999])
async def test_close_frames_are_echoed(number: int) -> None:
    """RFC 6455 §5.5.1; Autobahn 7.7."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(CLOSE, code(number, b"bye")), frame(TEXT, ASK))
        assert await socket.wait_for_close() == (number, "bye")
        assert await socket.peer.rest() == b""
        await app.until(lambda: len(app.runtime.streams) == 0)


async def test_close_frames_without_a_code_are_echoed_without_one() -> None:
    """RFC 6455 §7.1.5; Autobahn 7.3.1."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(CLOSE))
        assert (await socket.wait_for_close())[0] == 1005


@for_each("way", TRANSPORTS)
async def test_broken_connection_leaves_nothing_behind(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, b'{"type":"subscribe"}'), frame(TEXT, b'{"type":"mcp_call","tool":"forever"}'))
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1 and app.hub.stats().subscribers == 1)
        socket.peer.writer.transport.abort()
        await app.until(lambda: not app.runtime.dispatcher.calls and not app.hub.stats().subscribers)
        await app.until(lambda: len(app.runtime.streams) == 0 and not app.running.state.connections)


async def test_deflate_is_not_negotiated() -> None:
    async with world() as app:
        peer = await app.handshake(b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n")
        status, headers = await app.opened(peer)
        assert status == 101
        assert b"sec-websocket-extensions" not in headers
        socket = RawSocket(peer)
        await socket.message()
        await socket.send(frame(TEXT, ASK, rsv=4))
        assert (await socket.wait_for_close())[0] == 1002


# The opening handshake

VERSION_12 = UPGRADE.replace(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 12")


@for_each("way", TRANSPORTS)
async def test_unsupported_version_is_rejected_with_the_supported_one(way: str) -> None:
    """RFC 6455 §4.2.2."""
    async with world(way) as app:
        peer = await app.handshake(head=VERSION_12)
        status, headers = await app.opened(peer)
        assert (status, headers.get(b"sec-websocket-version")) in ((400, None), (400, b"13"), (426, b"13"))


@for_each("key", [b"", b"short", b"!" * 24, b"AAAAAAAAAAAAAAAAAAAAAA=="[:-3]])
async def test_invalid_websocket_key_gets_400(key: bytes) -> None:
    """RFC 6455 §4.2.1."""
    async with world() as app:
        peer = await app.running.connect()
        await peer.send(b"GET /ws HTTP/1.1\r\n%bSec-WebSocket-Key: %b\r\n\r\n" % (UPGRADE, key))
        status, _ = await app.opened(peer)
        assert status == 400


async def test_unknown_subprotocols_are_not_selected() -> None:
    """RFC 6455 §4.2.2."""
    async with world() as app:
        for offered, chosen in ((b"chat", None), (b"chat, mcp", b"mcp"), (b"MCP", None)):
            peer = await app.handshake(b"Sec-WebSocket-Protocol: %b\r\n" % offered)
            status, headers = await app.opened(peer)
            assert (status, headers.get(b"sec-websocket-protocol")) == (101, chosen)
            socket = RawSocket(peer)
            if chosen is None:
                assert (await socket.message())["type"] == "connected"
            else:
                await socket.send(frame(TEXT, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()))
                assert (await socket.message())["id"] == 1


async def test_websocket_upgrade_requires_its_headers() -> None:
    """RFC 6455 §4.2.1."""
    assert UPGRADE.startswith(HEAD)
    async with world() as app:
        peer = await app.handshake(head=UPGRADE.replace(b"Sec-WebSocket-Version: 13\r\n", b""))
        status, _ = await app.opened(peer)
        assert status in (400, 426)
