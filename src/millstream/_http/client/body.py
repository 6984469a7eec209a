"""Streamed reply bodies with backpressure."""

import asyncio
from typing import Protocol

_HIGH_WATER = 1024 * 1024
"""Buffered bytes above which the connection stops reading."""


class BodySource(Protocol):
    """The connection that receives a body."""

    def pause(self) -> None:
        """Pause reading."""

    def resume(self) -> None:
        """Resume reading."""

    def release(self) -> None:
        """Discard the rest of the body, because it has no reader."""


class Body:
    """The body of a reply, as a stream of bytes for one task."""

    __slots__ = ("_chunks", "_ended", "_error", "_size", "_source", "_waiter")

    def __init__(self, source: BodySource) -> None:
        self._source = source
        self._chunks: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None

    async def read(self) -> bytes:
        """Wait for data, and return all bytes received since the last call. Empty at the end.

        Raises:
            ClientError: the connection broke.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = b"".join(self._chunks)
        self._chunks.clear()
        if self._size > _HIGH_WATER:
            self._source.resume()
        self._size = 0
        return data

    def close(self) -> None:
        """Stop reading and discard the rest."""
        if not self._ended:
            self._ended = True
            self._source.release()
            self._wake()

    # Called by the connection

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size > _HIGH_WATER:
            self._source.pause()
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Mark the end of the body, or its failure with `error`."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
