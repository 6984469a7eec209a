"""What goes out on one WebSocket over ASGI: a bounded queue of whole text messages, and the writer that empties it.

ASGI shows no socket, so a slow peer is known by this: `send` is held up, and messages wait behind it. What waits
without being held up only means that the loop has not come round yet. Of what is held up, events and notifications
are counted, and too many of them end the socket. Answers are not: whoever asks for much over a thin line is not slow,
and the reader takes nothing new from a peer that leaves its answers (`drain`). Our own server shows its socket, and
needs no queue: `websocket_direct`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from millstream.http.asgi.sink import Send
from millstream.http.stream_end import CloseSignal

NORMAL = 1000
GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
TOO_BIG = 1009
INTERNAL = 1011
TRY_AGAIN_LATER = 1013
SLOW = "slow"

NOTIFICATION = b'{"jsonrpc":"2.0","method"'
_HIGH_WATER = 64 * 1024


class QueuedSocket:
    """The messages that wait for one peer. `run` sends them until the outbox is closed."""

    __slots__ = (
        "_deadline", "_ending", "_farewell", "_grace", "_held", "_limit", "_news", "_queue", "_room", "_send",
        "_unasked", "_waiting", "closed",
    )  # fmt: skip

    def __init__(self, send: Send, *, limit: int, grace: float) -> None:
        # Configuration
        self._send = send
        self._limit = limit
        self._grace = grace
        # Connection
        self._queue: deque[tuple[bytes, int]] = deque()
        """Messages, and the bytes of each that count as unasked."""
        self._waiting = 0
        self._unasked = 0
        self._held = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ending = CloseSignal()
        self._deadline: asyncio.Timeout | None = None
        self._farewell: tuple[int, str] | None = None
        self.closed = False

    @property
    def buffered(self) -> int:
        """Bytes of unasked messages that wait behind one which the peer does not take."""
        return self._unasked if self._held else 0

    def write(self, message: bytes) -> bool:
        """Queue an unasked message; False when the socket is closed, or is cut now because the peer is too slow."""
        if self._held and self._unasked > self._limit:
            self.cut()
        self._unasked += len(message)
        return self._put(message, len(message))

    def answer(self, message: bytes) -> bool:
        """Queue a message that the peer waits for; False when the socket is closed."""
        return self._put(message, 0)

    def carry(self, message: bytes) -> bool:
        """Queue a JSON-RPC message: a notification is unasked."""
        return self.write(message) if message.startswith(NOTIFICATION) else self.answer(message)

    def _put(self, message: bytes, unasked: int) -> bool:
        if self.closed:
            return False
        self._queue.append((message, unasked))
        self._waiting += len(message)
        if self._waiting > _HIGH_WATER:
            self._room.clear()
        self._news.set()
        return True

    async def drain(self) -> None:
        """Wait until there is room, or the socket is closed."""
        await self._room.wait()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once at the end, at once when it is past."""
        self._ending.add(callback)

    async def wait_closed(self) -> None:
        """Wait for the end."""
        await self._ending.wait()

    def forget(self, callback: Callable[[], None]) -> None:
        """Do not call back any more."""
        self._ending.forget(callback)

    def end(self, code: int, reason: str = "") -> None:
        """End it: what waits still goes out, then the close frame, all within the grace time. Idempotent."""
        self._end((code, reason))

    def close(self) -> None:
        """The hub ends it: because the peer is slow, or because the hub itself ends."""
        if self.buffered:
            self.cut()
        else:
            self.end(GOING_AWAY)

    def cut(self) -> None:
        """The peer reads too slowly: what waits is dropped, and the close frame says why."""
        self._queue.clear()
        self.end(TRY_AGAIN_LATER, SLOW)

    def lost(self) -> None:
        """The peer is gone."""
        self._queue.clear()
        self._end(None)

    def _end(self, farewell: tuple[int, str] | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._farewell = farewell
        self._news.set()
        self._room.set()
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._grace)
        self._ending.tell()

    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read and send until it is closed and empty, or the peer is gone, or does not take the rest in time."""
        reader = asyncio.create_task(reading)
        try:
            await self._run()
        finally:
            if not reader.done():
                reader.cancel()
            await asyncio.wait((reader,))
        if not reader.cancelled():
            reader.result()

    async def _run(self) -> None:
        try:
            async with asyncio.timeout(self._grace if self.closed else None) as self._deadline:
                while not self.closed or self._queue:
                    await self._news.wait()
                    self._news.clear()
                    await self._flush()
                if self._farewell is not None:
                    code, reason = self._farewell
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError):
            # Servers of ASGI 2.4 raise OSError when the peer is gone (TimeoutError, our own deadline, is one too), and
            # uvicorn RuntimeError when it has closed the connection itself, after a ping without an answer.
            pass
        finally:
            self._deadline = None
            self.lost()

    async def _flush(self) -> None:
        queue, send = self._queue, self._send
        while queue:
            message, unasked = queue.popleft()
            self._waiting -= len(message)
            self._unasked -= unasked
            self._held = True
            await send({"type": "websocket.send", "text": message.decode()})
            self._held = False
            if self._waiting <= _HIGH_WATER:
                self._room.set()
