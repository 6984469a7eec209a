"""The state of one Redis connection: epoch, store time, and pending attempts. No I/O."""

import asyncio
import secrets
import time
from collections.abc import Callable
from itertools import count
from typing import Final

PLACES: Final = 1024
"""Maximum number of concurrent attempts. More of them wait."""


class RedisState:
    """The state of one connection, from the time when it's opened."""

    __slots__ = ("_at", "_free", "_numbers", "_room", "epoch", "id", "renewed")

    def __init__(self) -> None:
        self.id = secrets.token_hex(6)
        """Names the places of this connection's attempts."""
        self.epoch = ""
        self.renewed: Callable[[], None] = lambda: None
        """Called when `epoch` has changed."""
        self._numbers = count(1)
        self._free = list(range(PLACES))
        self._room = asyncio.Semaphore(PLACES)
        self._at: tuple[float, float] | None = None

    def adopt(self, epoch: str) -> None:
        """Take the epoch that a script returned. Epochs begin with a time, so a late reply changes nothing."""
        before = self.epoch
        if epoch == before or epoch[:11] < before[:11]:
            return
        self.epoch = epoch
        if before:
            self.renewed()

    async def take_place(self) -> tuple[int, int]:
        """Return a place and a number, by which Redis recognizes an attempt that is made again. Free the place then."""
        await self._room.acquire()
        return self._free.pop(), next(self._numbers)

    def free_place(self, place: int) -> None:
        """End an attempt."""
        self._free.append(place)
        self._room.release()

    def set_time(self, microseconds: int, asked: float) -> None:
        """Take the time of Redis, for which it was asked at a time of the monotonic clock."""
        now = time.monotonic()
        self._at = (microseconds / 1e6 + (now - asked) / 2, now)

    def time(self) -> float:
        """Return the time by Redis' clock."""
        if self._at is None:
            return time.time()
        at, measured = self._at
        return at + time.monotonic() - measured
