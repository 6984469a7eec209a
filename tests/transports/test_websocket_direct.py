import asyncio
import json
from typing import Any

from websockets.frames import Frame, Opcode

from cases import for_each
from millstream._http.message import CompactEvent, HttpRequest, Response
from millstream._http.server.websocket import WebSocketProtocol
from millstream._http.websocket import SLOW, TRY_AGAIN_LATER, DirectSocket, text_frame
from millstream._transports.websocket import carry
from millstream.hub import HubLimits
from socket_world import CLOSE, PING, PONG, TEXT, TRANSPORTS, WAIT, World, frame, world

SUBSCRIBE = b'{"type":"subscribe"}'


class Taken:
    """A transport that keeps what it is given, and a wire to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.size = 0
        self.transport: Any = self
        self.room = CompactEvent()
        self.room.set()

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        """What the test says."""
        return self.size

    def hang_up(self) -> None:
        """Do nothing."""

    def accept(self, subprotocol: str) -> None:
        """Do nothing."""

    def refuse(self, response: Response) -> None:
        """Do nothing."""

    async def receive(self) -> None:
        """Return at once."""

    async def close(self, code: int, reason: str) -> None:
        """Fail: the socket must not close."""
        raise AssertionError(code)


def socket_on(wire: Taken) -> DirectSocket:
    """An open socket."""
    return DirectSocket(wire, request=HttpRequest("GET", "/ws", (), {}), limit=1000, grace=WAIT)


def protocol_of(app: World) -> WebSocketProtocol:
    """The server's side of the only connection."""
    (found,) = app.running.state.connections
    assert isinstance(found, WebSocketProtocol)
    return found


@for_each("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_frames_match_the_websockets_library(size: int) -> None:
    """RFC 6455 §5.2."""
    message = b"x" * size
    assert text_frame(message) == Frame(Opcode.TEXT, message).serialize(mask=False)


async def test_broadcast_events_are_framed_once() -> None:
    wires = [Taken() for _ in range(3)]
    outboxes = [socket_on(wire) for wire in wires]
    for message in (b'{"a":1}', b'{"b":2}'):
        assert all(outbox.write(message) for outbox in outboxes)
    first, *rest = [wire.written for wire in wires]
    assert first == [text_frame(b'{"a":1}'), text_frame(b'{"b":2}')]
    assert all(a is b for other in rest for a, b in zip(first, other, strict=True))


async def test_broadcast_wakes_no_task() -> None:
    async with world() as app:
        before = len(asyncio.all_tasks())
        socket = await app.raw()
        await socket.send(frame(TEXT, SUBSCRIBE))
        assert [(await socket.message())["type"] for _ in range(2)] == ["position", "subscribed"]
        assert len(asyncio.all_tasks()) == before + 1
        for n in range(10):
            await app.hub.publish("broadcast", str(n))
        assert [(await socket.message())["data"] for _ in range(10)] == [str(n) for n in range(10)]


async def test_compression_is_never_negotiated() -> None:
    """RFC 7692 §5."""
    async with world() as app, app.client(compression="deflate") as socket:
        assert not socket.protocol.extensions


async def test_nothing_is_written_after_a_close_frame() -> None:
    """RFC 6455 §5.5.1."""
    async with world() as app:
        socket = await app.raw()
        await socket.send(frame(TEXT, SUBSCRIBE))
        assert [(await socket.message())["type"] for _ in range(2)] == ["position", "subscribed"]
        protocol = protocol_of(app)
        protocol.data_received(frame(CLOSE, b"\x03\xe8"))
        assert (await app.hub.publish("broadcast", "late")).subscribers == 0
        assert await socket.wait_for_close() == (1000, "")
        assert await socket.peer.rest() == b""


@for_each("way", TRANSPORTS)
async def test_pending_large_replies_do_not_mark_the_reader_slow(way: str) -> None:
    async with world(way, limits=HubLimits(max_buffered=100_000)) as app:
        socket = await app.raw(small_buffer=True)
        await socket.send(frame(TEXT, SUBSCRIBE))
        assert [(await socket.message())["type"] for _ in range(2)] == ["position", "subscribed"]
        done: list[int] = []
        app.runtime.dispatcher.observe = lambda call, seconds, answer: done.append(len(answer))
        call = b'{"type":"mcp_call","tool":"text","arguments":{"size":3000000}}'
        await socket.send(frame(TEXT, call), frame(TEXT, call))
        await app.until(lambda: bool(done))
        for n in range(3):
            await app.hub.publish("broadcast", str(n))
        kinds = [(await socket.message())["type"] for _ in range(5)]
        assert (kinds.count("mcp_result"), kinds.count("event")) == (2, 3)
        assert app.hub.stats().disconnected == {}


async def test_excess_notifications_close_the_socket_with_a_reason() -> None:
    wire = Taken()
    outbox = socket_on(wire)
    change = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    assert carry(outbox, change)
    wire.size = 1001
    assert carry(outbox, b'{"jsonrpc":"2.0","id":1,"result":{}}')
    assert not carry(outbox, change)
    assert outbox.closed
    assert outbox._farewell == (TRY_AGAIN_LATER, SLOW)


async def held(app: World) -> tuple[Any, WebSocketProtocol]:
    """A peer that has asked for a large answer and reads none of it, and the server's side."""
    socket = await app.raw(small_buffer=True)
    protocol = protocol_of(app)
    await socket.send(frame(TEXT, b'{"type":"mcp_call","tool":"text","arguments":{"size":8000000}}'))
    await app.until(lambda: not protocol.room.is_set())
    return socket, protocol


async def test_slow_readers_of_large_replies_are_not_considered_dead() -> None:
    async with world(table_options={"heartbeat": 1000.0}) as app:
        socket, protocol = await held(app)
        guard, unread = app.running.guard, protocol.transport.get_write_buffer_size()
        now = guard.clock
        guard._check_batch([protocol], now, 1)
        await socket.peer.reader.readexactly(2_000_000)
        await app.until(lambda: protocol.transport.get_write_buffer_size() < unread)
        guard._check_batch([protocol], now + 31, 1)
        assert not protocol.transport.is_closing()
        guard._check_batch([protocol], now + 62, 1)
        assert protocol.transport.is_closing()


async def test_ping_after_a_large_reply_is_answered() -> None:
    async with world() as app:
        socket, _ = await held(app)
        await socket.send(frame(PING, b"p"))
        opcode, payload = await socket.frame()
        assert (opcode, json.loads(payload)["type"]) == (TEXT, "mcp_result")
        assert await socket.frame() == (PONG, b"p")
