"""The state of one Redis connection: epoch, store time, and pending attempts. No I/O."""

import asyncio
import secrets
import time
from collections.abc import Callable
from itertools import count

PLACES = 1024
"""Maximum number of concurrent attempts. Further attempts wait."""


class RedisState:
    """The state of one open connection."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(6)
        """The identifier of this connection in retry detection."""
        self.epoch = ""
        self.renewed: Callable[[], None] = lambda: None
        """Callback for changes of `epoch`."""
        self._numbers = count(1)
        self._free = list(range(PLACES))
        self._room = asyncio.Semaphore(PLACES)
        self._at: tuple[float, float] | None = None

    def adopt(self, epoch: str) -> None:
        """Set the epoch that a script returned. Epochs begin with a time, so late replies are ignored."""
        before = self.epoch
        if epoch == before or epoch[:11] < before[:11]:
            return
        self.epoch = epoch
        if before:
            self.renewed()

    async def take_place(self) -> tuple[int, int]:
        """Return a place and a number that let Redis recognize retries. Release it with `free_place`."""
        await self._room.acquire()
        return self._free.pop(), next(self._numbers)

    def free_place(self, place: int) -> None:
        """Release the place of a finished attempt."""
        self._free.append(place)
        self._room.release()

    def set_time(self, microseconds: int, asked: float) -> None:
        """Set the clock from the time of Redis, requested at the monotonic time `asked`."""
        now = time.monotonic()
        self._at = (microseconds / 1e6 + (now - asked) / 2, now)

    def time(self) -> float:
        """Return the time by Redis' clock."""
        if self._at is None:
            return time.time()
        at, measured = self._at
        return at + time.monotonic() - measured
