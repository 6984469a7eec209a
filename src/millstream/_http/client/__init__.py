"""The outbound HTTP engine, used by the client, for sign-ins, and to fetch key sets.

This module contains the shared parts: streamed reply bodies with backpressure, bounds on what one server may send, and
errors that describe the problem and a remedy.
"""

import asyncio
from math import inf
from typing import Protocol

from msgspec import Struct

from millstream._copies import CopyableError
from millstream._http.message import PIECE, CompactEvent
from millstream._protocol.principal import Share


class ClientError(CopyableError):
    """The base class of client errors. ``except ClientError as error: print(error)``

    Args:
        message: What happened.
        remedy: What to do, in one sentence.
    """

    status: int = 0
    """The HTTP status, if the server responded with an error, or 0."""
    detail: str = ""
    """The reason that came with the status, shortened."""
    retry_after: float | None = None
    """Seconds after which the server allows another try, if it specified that."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}" if remedy else message)
        self.message = message
        """The error, without advice."""
        self.remedy = remedy
        """The advice, or an empty string."""


class TargetError(ClientError):
    """The target is ambiguous or can't be started: ``except TargetError as error: print(error)``."""


class UnsendableRequest(ClientError):
    """The request can't be sent, because a value in its head isn't allowed there.

    Example:
        ``except UnsendableRequest as error: print(error)``
    """


class ConnectFailed(ClientError):
    """The connection failed: the host is unknown, the port is closed, or the server didn't start.

    Example:
        ``except ConnectFailed: start_the_server()``
    """


class TlsFailed(ConnectFailed):
    """The server's certificate isn't trusted, or the server doesn't use TLS on that port.

    Example:
        ``except TlsFailed: options = Options(tls=context)``
    """


class ConnectionLost(ClientError):
    """The connection closed before the response arrived. ``except ConnectionLost: did_it_run = None``"""


class TooLarge(ClientError):
    """The server sent more than the client accepts. ``except TooLarge: options = Options(max_bytes=2**30)``"""


class TooMuchArriving(TooLarge):
    """Unfinished messages take up too many bytes, for one server or one of several callers.

    ``except TooMuchArriving as error: print(error.holding)``

    Args:
        holding: The messages, with their bytes and the maximum, as text.
    """

    def __init__(self, holding: str) -> None:
        super().__init__(f"The server is sending too much data at once: {holding}. Try again later.")
        self.holding: str = holding


class InvalidResponse(ClientError):
    """The server broke the protocol: unreadable JSON, another request's id, a result of the wrong shape.

    Example:
        ``except InvalidResponse as error: report(error)``
    """


_HIGH_WATER = 1024 * 1024
"""Buffered bytes above which the connection stops reading."""
LINES_PER_SECOND = 20_000
"""Maximum lines of event streams read per second and server. Beyond that, the server has to wait."""


class RateMeter(Struct):
    """Limits how much is received per second: ``await asyncio.sleep(RateMeter(20_000).take(lines, loop.time()))``."""

    _limit: int
    _whole_at: float = -inf
    """Time when the whole allowance of one second is free again, as in `Limiter`."""

    def take(self, amount: int, now: float) -> float:
        """Count received lines and return the seconds to wait before reading more.

        Args:
            amount: The amount received, in any unit.
            now: The time in seconds.
        """
        self._whole_at = max(now, self._whole_at) + amount / self._limit
        return max(0.0, self._whole_at - 1 - now)


class ArrivingBytes:
    """Counts the bytes of unfinished messages, by the server that sends them and the waiting caller.

    ``ArrivingBytes(256 * 1024**2, largest=64 * 1024**2)``

    A caller can hold half as much as a server, so one caller can't use up a server's share.

    Args:
        maximum: Bytes of all messages.
        largest: Bytes of the largest message. A caller's share fits one, and a server's two.
    """

    def __init__(self, maximum: int, largest: int) -> None:
        self.servers: Share = Share(maximum)
        self.callers: Share = Share(maximum, each=self.servers.each // 2)
        self.fit(largest)

    def fit(self, largest: int) -> None:
        """Grow, if needed, for messages of this size."""
        self.servers.fit(2 * largest)
        self.callers.maximum, self.callers.each = self.servers.maximum, max(1, self.servers.each // 2)


class Inflow:
    """Limits what one server sends: ``ConnectionPool(…, inflow=Inflow(arriving, "shop"))``.

    It counts bytes of unfinished messages and lines of event streams.

    Args:
        arriving: Bytes of unfinished messages from several servers. Without it, they aren't counted.
        server: The server's name.
    """

    def __init__(self, arriving: ArrivingBytes | None = None, server: str = "") -> None:
        self._arriving = arriving
        self._server = server
        self.lines: RateMeter = RateMeter(LINES_PER_SECOND)

    def count(self, before: int, size: int, owner: str = "") -> int:
        """Record that a message has grown from `before` to `size` bytes, or is complete (0). Return `size`.

        Args:
            before: Bytes that were counted before.
            size: Bytes of the message.
            owner: The waiting caller, or empty if unknown.

        Raises:
            TooMuchArriving: There's no space for more. The message still counts as `before` bytes.
        """
        if self._arriving is None or size == before:
            return size
        servers, callers = self._arriving.servers, self._arriving.callers
        if size < before:
            servers.leave(self._server, before - size)
            callers.leave(owner, before - size)
            return size
        full = callers if not callers.has_room(owner, size - before) else servers
        if full is callers or not servers.take(self._server, size - before):
            whose, held = ("your", owner) if full is callers else ("its", self._server)
            raise TooMuchArriving(f"{whose} unfinished replies use {full.count(held):,} of {full.each:,} bytes")
        callers.take(owner, size - before)
        return size


class BodySource(Protocol):
    """The connection that receives a body."""

    def pause(self) -> None:
        """Pause reading."""

    def resume(self) -> None:
        """Resume reading."""

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
