"""A streamed reply over ASGI: synchronous writes to a bounded buffer, which one task sends in order.

ASGI has no synchronous write and doesn't expose the socket's buffer, so bytes are buffered here. A reader that falls
more than `limit` bytes behind is cut: the reply ends without its final message, so the peer sees a broken stream.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from millstream._http.close_signal import CloseSignal
from millstream._override import override

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HIGH_WATER = 64 * 1024
_MAX_CACHED = 256

header_lists: dict[bytes, list[tuple[bytes, bytes]]] = {}
"""Cache of split header lines. Nearly all replies use one of a few heads."""


def header_list(head: bytes) -> list[tuple[bytes, bytes]]:
    """Convert header lines to an ASGI header list. Callers must not change the list."""
    found = header_lists.get(head)
    if found is None:
        found = list[tuple[bytes, bytes]]()
        for line in head.split(b"\r\n")[:-1]:
            name, _, value = line.partition(b": ")
            found.append((name, value))
        if len(header_lists) >= _MAX_CACHED:
            header_lists.clear()
        header_lists[head] = found
    return found


class AsgiSink(CloseSignal):
    """The `Sink` of the ASGI adapter."""

    __slots__ = ("_buffer", "_limit", "_pump", "_room", "_send", "_wake", "buffered")

    def __init__(self, send: Send, status: int, head: bytes, *, limit: int) -> None:
        super().__init__()
        self._send = send
        self._limit = limit
        self._buffer: list[bytes] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.buffered = 0
        self._pump = asyncio.create_task(self._run(status, head))

    def write(self, data: bytes) -> None:
        """Queue a chunk. Cut the peer if it's too far behind."""
        if self.closed or not data:
            return
        if self.buffered > self._limit:
            self.cut()
            return
        self._buffer.append(data)
        self.buffered += len(data)
        if self.buffered > _HIGH_WATER:
            self._room.clear()
        self._wake.set()

    async def drain(self) -> None:
        await self._room.wait()

    def close(self) -> None:
        """End the reply after the buffered bytes are sent."""
        self.connection_lost()

    def cut(self) -> None:
        """End the reply without the final message, and drop buffered bytes."""
        self._buffer.clear()
        self.buffered = 0
        self._pump.cancel()
        self.connection_lost()

    async def finish(self) -> None:
        """Close, and wait until the last byte is passed to the server or the peer is gone."""
        self.close()
        try:
            await asyncio.wait((self._pump,))
        finally:
            self._pump.cancel()

    @override
    def connection_lost(self) -> None:
        """Stop writing."""
        super().connection_lost()
        self._wake.set()
        self._room.set()

    async def _run(self, status: int, head: bytes) -> None:
        send = self._send
        buffer = self._buffer
        try:
            await send({"type": "http.response.start", "status": status, "headers": header_list(head)})
            while True:
                if buffer:
                    data = b"".join(buffer)
                    buffer.clear()
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self.buffered -= len(data)
                    if self.buffered <= _HIGH_WATER:
                        self._room.set()
                elif self.closed:
                    break
                else:
                    self._wake.clear()
                    await self._wake.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            # ASGI 2.4 servers raise when the peer is gone; older ones ignore the message.
            self.connection_lost()
