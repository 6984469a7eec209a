"""A WebSocket of our own server, which writes frames directly to the transport, under its flow control.

ASGI's `send` is a coroutine, so a broadcast would wake one task per subscriber and message. Our own protocol
(`_http.server.websocket`) exposes itself in the scope, under `EXTENSION`. A message is then framed once, and the same
bytes are written to every subscribed socket, as a `ReplyStream` does with events. The closing handshake uses ASGI.

The transport's buffered bytes measure how far a peer is behind.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from millstream._http.asgi.sink import Send
from millstream._http.close_signal import LARGE, LastFrame
from millstream._http.websocket.compact_queue import CompactEvent
from millstream._http.websocket.socket import Socket
from millstream._override import override

EXTENSION = "millstream.websocket"
"""The key of the protocol object in the scope's extensions."""


class DirectWire(Protocol):
    """The interface of a connection's protocol class beyond ASGI."""

    transport: asyncio.Transport
    outbox: "DirectSocket | None"
    """The socket to notify: by `took` when there is space again, and by `connection_lost` when writing must end."""

    owner: str
    """The caller, against whose share unread messages count."""

    def count_unsent(self, size: int) -> None:
        """Count a large message that was just written, until the client has read it."""

    @property
    def room(self) -> CompactEvent:
        """An event that is set while the transport has space."""
        ...

    def hang_up(self) -> None:
        """Make the application's `receive` return a disconnect."""


_last = LastFrame()


class DirectSocket(Socket):
    """A socket with access to its transport."""

    __slots__ = ("_asked", "_transport", "_wire")

    def __init__(self, wire: DirectWire, send: Send, *, limit: int, grace: float) -> None:
        super().__init__(send, limit=limit, grace=grace)
        self._wire = wire
        self._transport = wire.transport
        self._asked = 0
        """Maximum bytes of answers in the transport's buffer."""
        wire.outbox = self

    @property
    @override
    def buffered(self) -> int:
        return 0 if self.closed else max(0, self._transport.get_write_buffer_size() - self._asked)

    @override
    def write(self, message: bytes, /) -> bool:
        if self.closed or not message:
            return not self.closed
        transport = self._transport
        if transport.get_write_buffer_size() - self._asked > self._limit:
            self.cut()
            return False
        if _last.data is not message:
            _last.framed = text_frame(message)
            _last.data = message
            _last.is_large = len(message) > LARGE
        transport.write(_last.framed)
        if _last.is_large:
            self._wire.count_unsent(len(message))
        return True

    @override
    def answer(self, message: bytes) -> bool:
        if self.closed:
            return False
        data = text_frame(message)
        self._transport.write(data)
        if len(data) > LARGE:
            self._wire.count_unsent(len(data))
        if not self._wire.room.is_set():
            self._asked += len(data)
        return True

    @override
    async def drain(self) -> None:
        room = self._wire.room
        while not (room.is_set() or self.closed):
            await room.wait_changed()

    def took(self) -> None:
        """Resume, because the transport has space again."""
        self._asked = 0

    @override
    def _stop(self) -> None:
        if self._farewell is not None:
            self._wire.hang_up()
        self._wire.room.notify()

    @override
    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read until the socket is closed, then send the close frame."""
        try:
            await reading
        finally:
            try:
                async with asyncio.timeout(self._grace):
                    await self._say_goodbye()
            except (OSError, RuntimeError):
                pass  # The peer is gone, or doesn't read the rest in time (TimeoutError is an OSError).
            self.connection_lost()


def text_frame(message: bytes) -> bytes:
    """Return a complete text message as one uncompressed server frame (RFC 6455 §5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8), message)
