"""Streamed reply bodies with backpressure, and what one server may send."""

import asyncio
from math import inf
from typing import Protocol

from millstream._http.client.errors import TooLarge
from millstream._http.limits import PIECE
from millstream._protocol.share import Share

_HIGH_WATER = 1024 * 1024
"""Buffered bytes above which the connection stops reading."""
LINES_PER_SECOND = 20_000
"""Maximum lines of event streams read per second and server. Beyond that, the server has to wait."""


class RateMeter:
    """Limits the amount received per second."""

    __slots__ = ("_amount", "_limit", "_since")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._amount = 0
        self._since = -inf

    def take(self, amount: int, now: float) -> float:
        """Return the seconds to wait before reading more."""
        if now - self._since >= 1:
            self._since = now
            self._amount = 0
        self._amount += amount
        return max(0.0, self._since + 1 - now) if self._amount > self._limit else 0.0


class Inflow:
    """What one server sends: messages that aren't complete yet, and lines of event streams.

    Args:
        share: Bytes of unfinished messages from several servers. Without it, they aren't counted.
        server: The server's name in the share.
    """

    __slots__ = ("_server", "_share", "lines")

    def __init__(self, share: Share | None = None, server: str = "") -> None:
        self._share = share
        self._server = server
        self.lines = RateMeter(LINES_PER_SECOND)

    def count(self, before: int, size: int) -> int:
        """Count that a message has grown from `before` to `size` bytes, or that it's complete (0). Return `size`.

        Raises:
            TooLarge: the server sends too much at a time. The message still counts with `before` bytes.
        """
        share = self._share
        if share is None or size == before:
            return size
        if size < before:
            share.leave(self._server, before - size)
        elif not share.take(self._server, size - before):
            raise TooLarge(
                f"The server is sending too much at a time: its unfinished replies take {share.count(self._server):,} "
                f"of {share.each:,} bytes. Try again later."
            )
        return size


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

    __slots__ = ("_buffer", "_ended", "_error", "_source", "_waiter", "inflow")

    def __init__(self, source: BodySource, inflow: Inflow) -> None:
        self._source = source
        self.inflow = inflow
        """What the server sends, over all streams."""
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None

    async def read(self) -> bytes:
        """Wait for data, and return up to `PIECE` bytes. Empty at the end.

        Raises:
            ClientError: the connection broke.
        """
        buffer = self._buffer
        while not buffer:
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        was_full = len(buffer) > _HIGH_WATER
        data = bytes(buffer[:PIECE])
        del buffer[:PIECE]
        if was_full and len(buffer) <= _HIGH_WATER:
            self._source.resume()
        if buffer:
            await asyncio.sleep(0)  # a piece can mean much work
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
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER:
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
