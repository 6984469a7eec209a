"""The body of a reply that is read while it comes, with the brake that a slow reader needs."""

import asyncio
from typing import Protocol

_HIGH = 1024 * 1024
"""Maximum bytes that wait for the reader before the connection stops reading."""


class BodySource(Protocol):
    """The connection that a body comes from."""

    def pause(self) -> None:
        """Read no more for now."""

    def resume(self) -> None:
        """Read on."""

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
        """What has come since the last time; waits for some. Empty at the end.

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
        if self._size > _HIGH:
            self._source.resume()
        self._size = 0
        return data

    def close(self) -> None:
        """Read no more of it."""
        if not self._ended:
            self._ended = True
            self._source.release()
            self._wake()

    # What the connection says

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._chunks.append(data)
        self._size += len(data)
        if self._size > _HIGH:
            self._source.pause()
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No more will come."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
