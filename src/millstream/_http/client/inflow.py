"""Limits on what one server may send: bytes of unfinished messages, and lines of event streams."""

from math import inf

from msgspec import Struct

from millstream._http.client.errors import TooMuchArriving
from millstream._protocol.principal import Share

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
