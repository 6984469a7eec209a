"""The bodies of replies, as streams with backpressure."""

import asyncio
from typing import Protocol

from millstream._http.client.inflow import Inflow
from millstream._http.message import PIECE, CompactEvent

_HIGH_WATER = 1024 * 1024
"""Buffered bytes above which the connection stops reading."""


class BodySource(Protocol):
    """The connection that receives a body."""

    def pause(self) -> None:
        """Pause reading."""

    def resume(self) -> None:
        """Resume reading."""

    async def write(self, data: bytes) -> None:
        """Write to a server that has switched protocols, and wait until the transport has space."""

    def release(self) -> None:
        """Discard the rest of the body. Called when it has no reader."""


class Body:
    """The body of a reply, as a stream of bytes for one task."""

    __slots__ = ("_buffer", "_ended", "_error", "_news", "_owner", "_source", "inflow")

    def __init__(self, source: BodySource, inflow: Inflow, owner: str = "") -> None:
        self._owner = owner
        self._source = source
        self.inflow: Inflow = inflow
        """Limits what the server sends, over all streams."""
        self._buffer = bytearray()
        self._news = CompactEvent()
        self._ended = False
        self._error: Exception | None = None

    async def read(self) -> bytes:
        """Wait for data and return up to `PIECE` bytes. Empty at the end.

        Raises:
            ClientError: The connection broke.
        """
        buffer = self._buffer
        while not buffer:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._news.wait_changed()
        if len(buffer) > PIECE:
            await asyncio.sleep(0)  # processing a piece can take long. A canceled reader hasn't lost one yet.
        was_full = len(buffer) > _HIGH_WATER
        data = bytes(buffer[:PIECE])
        del buffer[:PIECE]
        if was_full and len(buffer) <= _HIGH_WATER:
            self._source.resume()
        return data

    async def write(self, data: bytes) -> None:
        """Send data to a server that has switched protocols. Wait while it doesn't read."""
        await self._source.write(data)

    def count(self, before: int, size: int) -> int:
        """See `Inflow.count`."""
        return self.inflow.count(before, size, self._owner)

    def close(self) -> None:
        """Stop reading and discard the rest."""
        if not self._ended:
            self._ended = True
            self._source.release()
            self._news.notify()

    # Called by the connection

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER:
            self._source.pause()
        self._news.notify()

    def end(self, error: Exception | None = None) -> None:
        """Mark the end of the body, or its failure with `error`."""
        self._ended = True
        self._error = error
        self._news.notify()
