"""What goes out on one WebSocket of our own server: frames straight to the transport, under its flow control.

ASGI sends by a coroutine, so a broadcast over it wakes one task for every subscriber and message. Our protocol class
(`websocket_uvicorn`) offers itself in the scope, under `EXTENSION`; then a message is framed once and the same bytes
are written to every socket that they are for, as a `LaneSink` does with events. The closing handshake stays with ASGI.

The bytes that the transport holds are how far a peer is behind. Answers are not counted: whoever asks for much over a
thin line is not slow, and the reader takes nothing new from a peer that leaves its answers (`drain`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from millstream.http.asgi.sink import Send
from millstream.http.stream_end import CloseSignal
from millstream.http.websocket.queued import GOING_AWAY, NOTIFICATION, SLOW, TRY_AGAIN_LATER, QueuedSocket
from millstream.http.websocket.waiting import CompactEvent

EXTENSION = "millstream.websocket"
"""Where the protocol class stands among the extensions of the scope."""


class Wire(Protocol):
    """What the protocol class of one connection gives beyond ASGI."""

    transport: asyncio.Transport
    outbox: "DirectSocket | None"
    """Told by `took` when the peer takes bytes again, and by `lost` when no further message may be written."""

    @property
    def room(self) -> CompactEvent:
        """Open while the transport has room."""
        ...

    def hang_up(self) -> None:
        """Let the application's `receive` give a disconnect."""
        ...


class _Frame:
    """The message framed last. A broadcast writes the same bytes to every socket, one after the other."""

    __slots__ = ("data", "message")

    def __init__(self) -> None:
        self.message = b""
        self.data = b""


_last = _Frame()


class DirectSocket:
    """The messages for one peer. An `Outlet` of the hub, as `websocket_outbox.Outbox` is."""

    __slots__ = ("_asked", "_ending", "_farewell", "_grace", "_limit", "_send", "_transport", "_wire", "closed")

    def __init__(self, wire: Wire, send: Send, *, limit: int, grace: float) -> None:
        # Configuration
        self._send = send
        self._limit = limit
        self._grace = grace
        # Connection
        self._wire = wire
        self._transport = wire.transport
        self._asked = 0
        """Bytes of answers that the transport may still hold."""
        self._ending = CloseSignal()
        self._farewell: tuple[int, str] | None = None
        self.closed = False
        wire.outbox = self

    @property
    def buffered(self) -> int:
        """Bytes of unasked messages that the peer has not taken."""
        return 0 if self.closed else max(0, self._transport.get_write_buffer_size() - self._asked)

    def write(self, message: bytes) -> bool:
        """Write an unasked message; False when the socket is closed, or is cut now because the peer is too slow."""
        if self.closed:
            return False
        transport = self._transport
        if transport.get_write_buffer_size() - self._asked > self._limit:
            self.cut()
            return False
        if _last.message is not message:
            _last.data = text_frame(message)
            _last.message = message
        transport.write(_last.data)
        return True

    def answer(self, message: bytes) -> bool:
        """Write a message that the peer waits for; False when the socket is closed."""
        if self.closed:
            return False
        data = text_frame(message)
        self._transport.write(data)
        if not self._wire.room.is_set():
            self._asked += len(data)
        return True

    def carry(self, message: bytes) -> bool:
        """Write a JSON-RPC message: a notification is unasked."""
        return self.write(message) if message.startswith(NOTIFICATION) else self.answer(message)

    async def drain(self) -> None:
        """Wait until the peer takes bytes again, or the socket is closed."""
        room = self._wire.room
        while not (room.is_set() or self.closed):
            await room.stirred()

    def took(self) -> None:
        """The transport has room again."""
        self._asked = 0

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once at the end, at once when it is past."""
        self._ending.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        self._ending.forget(callback)

    async def wait_closed(self) -> None:
        """Wait for the end."""
        await self._ending.wait()

    def end(self, code: int, reason: str = "") -> None:
        """End it: what is written still goes out, then the close frame, within the grace time. Idempotent."""
        if not self.closed:
            self._farewell = (code, reason)
            self._wire.hang_up()
            self._over()

    def close(self) -> None:
        """The hub ends it: because the peer is slow, or because the hub itself ends."""
        if self.buffered:
            self.cut()
        else:
            self.end(GOING_AWAY)

    def cut(self) -> None:
        """The peer reads too slowly: the close frame says so, behind what is written."""
        self.end(TRY_AGAIN_LATER, SLOW)

    def lost(self) -> None:
        """The peer is gone, or the closing handshake has begun: no further message."""
        if not self.closed:
            self._over()

    def _over(self) -> None:
        self.closed = True
        self._wire.room.stir()
        self._ending.tell()

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read until the socket is closed, and say goodbye."""
        try:
            await reading
        finally:
            await self._close()

    async def _close(self) -> None:
        if self._farewell is not None:
            code, reason = self._farewell
            try:
                async with asyncio.timeout(self._grace):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
            except (OSError, RuntimeError):
                pass  # The peer is gone, or does not take the rest in time (TimeoutError is an OSError).
        self.lost()


AnyOutbox = QueuedSocket | DirectSocket


def text_frame(message: bytes) -> bytes:
    """A whole text message of a server as one frame (RFC 6455 §5.2); not compressed, whatever was negotiated."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8), message)
