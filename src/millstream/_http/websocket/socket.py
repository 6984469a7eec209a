"""The output of one WebSocket: complete text messages, followed by a close frame.

Events and notifications are unsolicited: a peer with too many unread bytes of them is cut as slow. Answers aren't
counted, because a peer may request much over a slow connection. Instead, reading pauses while a peer doesn't read its
answers (`drain`). `queued_socket` (ASGI) and `direct_socket` (our own server) implement the sending.
"""

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from millstream._http.asgi.sink import Send
from millstream._http.close_signal import CloseSignal
from millstream._override import override

GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
TOO_BIG = 1009
INTERNAL = 1011
TRY_AGAIN_LATER = 1013
SLOW = "slow"


class Socket(CloseSignal, ABC):
    """The messages for one peer, and a `Sink` for unsolicited messages. Writes after the close are dropped."""

    __slots__ = ("_farewell", "_grace", "_limit", "_send")

    def __init__(self, send: Send, *, limit: int, grace: float) -> None:
        super().__init__()
        # Configuration
        self._send = send
        self._limit = limit
        self._grace = grace
        # Connection
        self._farewell: tuple[int, str] | None = None

    @property
    @abstractmethod
    def buffered(self) -> int:
        """Bytes of unsolicited messages that the peer hasn't accepted."""

    @abstractmethod
    def write(self, message: bytes, /) -> bool:
        """Send an unsolicited message. Return False if the socket is closed, or was cut because the peer is slow."""

    @abstractmethod
    def answer(self, message: bytes) -> bool:
        """Send a message that the peer requested. Return False if the socket is closed."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the peer accepts bytes again, or the socket is closed."""

    @abstractmethod
    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read until the socket is closed, then send the close frame within the grace time."""

    def end(self, code: int, reason: str = "") -> None:
        """Close after sending written messages and the close frame, within the grace time. Idempotent."""
        self._end((code, reason))

    def close(self) -> None:
        """End all writing, because the peer is slow or there is nothing more to write."""
        if self.buffered:
            self.cut()
        else:
            self.end(GOING_AWAY)

    def cut(self) -> None:
        """Drop queued messages of a slow peer. The close frame gives the reason."""
        self._drop()
        self.end(TRY_AGAIN_LATER, SLOW)

    @override
    def connection_lost(self) -> None:
        """Stop sending, because the peer is gone or the closing handshake has begun."""
        self._drop()
        self._end(None)

    def _end(self, farewell: tuple[int, str] | None) -> None:
        if not self.closed:
            self._farewell = farewell
            super().connection_lost()
            self._stop()

    def _drop(self) -> None:
        """Drop queued messages."""

    @abstractmethod
    def _stop(self) -> None:
        """Wake all readers and waiters, because the socket is closed."""

    async def _say_goodbye(self) -> None:
        if self._farewell is not None:
            code, reason = self._farewell
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
