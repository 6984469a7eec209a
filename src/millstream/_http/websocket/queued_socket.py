"""A WebSocket over ASGI: a bounded queue of whole text messages, and the writer that empties it.

ASGI doesn't expose the socket, so a peer counts as slow only while a `send` blocks and messages wait behind it. Of
these, only unsolicited messages are counted.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from millstream._http.asgi.sink import Send
from millstream._http.websocket.socket import Socket
from millstream._override import override

_HIGH_WATER = 64 * 1024


class QueuedSocket(Socket):
    """A socket whose `run` sends queued messages until it's closed."""

    __slots__ = ("_deadline", "_held", "_news", "_queue", "_room", "_unasked", "_waiting")

    def __init__(self, send: Send, *, limit: int, grace: float) -> None:
        super().__init__(send, limit=limit, grace=grace)
        self._queue: deque[tuple[bytes, int]] = deque()
        """Queued messages, each with its bytes that count as unsolicited."""
        self._waiting = 0
        self._unasked = 0
        self._held = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._deadline: asyncio.Timeout | None = None

    @property
    @override
    def buffered(self) -> int:
        """Bytes of unsolicited messages that wait behind one which the peer hasn't accepted."""
        return self._unasked if self._held else 0

    @override
    def write(self, message: bytes, /) -> bool:
        if self._held and self._unasked > self._limit:
            self.cut()
        self._unasked += len(message)
        return self._put(message, len(message))

    @override
    def answer(self, message: bytes) -> bool:
        return self._put(message, 0)

    def _put(self, message: bytes, unasked: int) -> bool:
        if self.closed or not message:
            return not self.closed
        self._queue.append((message, unasked))
        self._waiting += len(message)
        if self._waiting > _HIGH_WATER:
            self._room.clear()
        self._news.set()
        return True

    @override
    async def drain(self) -> None:
        await self._room.wait()

    @override
    def _drop(self) -> None:
        self._queue.clear()

    @override
    def _stop(self) -> None:
        self._news.set()
        self._room.set()
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._grace)

    @override
    async def run(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read and send until the socket is closed and empty, or the peer is gone or doesn't read in time."""
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
                await self._say_goodbye()
        except (OSError, RuntimeError):
            # ASGI 2.4 servers raise OSError if the peer is gone, and TimeoutError, our own deadline, is an OSError,
            # too. uvicorn raises RuntimeError after it has closed the connection itself, because a ping wasn't
            # answered.
            pass
        finally:
            self._deadline = None
            self.connection_lost()

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
