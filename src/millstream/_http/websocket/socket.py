"""What goes out on one WebSocket: whole text messages, some of which the peer asked for, and a proper end.

Events and notifications come unasked: of those a peer may leave so many bytes, then it is cut as slow. Answers are not
counted: whoever asks for much over a thin line is not slow, and the reader takes nothing new from a peer that leaves
its answers (`drain`). How the messages get there is up to `queued` (ASGI) and `direct` (our own server).
"""

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from millstream._http.asgi.sink import Send
from millstream._http.close_signal import CloseSignal

GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
TOO_BIG = 1009
INTERNAL = 1011
TRY_AGAIN_LATER = 1013
SLOW = "slow"


class Socket(CloseSignal, ABC):
    """The messages for one peer. A `Sink` of unasked messages; what is written when it is closed is dropped."""

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
        """Send an unasked message; False when the socket is closed, or is cut now because the peer is too slow."""

    @abstractmethod
    def answer(self, message: bytes) -> bool:
        """Send a message that the peer waits for; False when the socket is closed."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the peer accepts bytes again, or the socket is closed."""

    @abstractmethod
    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read until the socket is closed, then send the close frame within the grace time."""

    def end(self, code: int, reason: str = "") -> None:
        """End it: what is written still goes out, then the close frame, within the grace time. Idempotent."""
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

    def lost(self) -> None:
        """The peer is gone, or the closing handshake has begun: no further message."""
        self._drop()
        self._end(None)

    def _end(self, farewell: tuple[int, str] | None) -> None:
        if not self.closed:
            self._farewell = farewell
            super().lost()
            self._stop()

    def _drop(self) -> None:
        """Forget what waits."""

    @abstractmethod
    def _stop(self) -> None:
        """Wake all readers and waiters, because the socket is closed."""

    async def _say_goodbye(self) -> None:
        if self._farewell is not None:
            code, reason = self._farewell
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
