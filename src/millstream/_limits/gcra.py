"""Rate limiting with GCRA, the generic cell rate algorithm, which keeps one number for each key.

The number is the time at which the key's allowance is full again. An action is allowed while that time is close enough,
which permits a burst, refills evenly, and gives the exact time to wait.
"""

import re
from collections.abc import Callable
from math import ceil
from time import monotonic

from msgspec import Struct

from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._stores.rates import Pace, pace_wait

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,8}) ?/ ?(second|minute|hour|day)")


class Rate(Struct, frozen=True):
    """A number of actions per number of seconds, with a burst of the same size."""

    count: int
    seconds: int

    @classmethod
    def of(cls, text: str) -> "Rate":
        """Parse ``100/minute``. The units are second, minute, hour, and day.

        Raises:
            ValueError: The text isn't a rate.
        """
        match = _RATE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} isn't a rate. Use a number and a unit, such as 100/minute or 5/second.")
        return cls(int(match[1]), _UNITS[match[2]])


class Limiter:
    """A limiter that applies one rate to each key. For one event loop.

    Args:
        name: name of the limit, for headers and the store.
        rate: rate of each key.
        clock: monotonic clock.
        max_keys: maximum number of keys. Beyond it, the older half of those with less than a full allowance is dropped.
        pool: returns the store's limiter once the store is open. `charge` and `report` count there on all workers.
    """

    def __init__(
        self,
        name: str,
        rate: Rate,
        *,
        clock: Callable[[], float] = monotonic,
        max_keys: int = 100_000,
        pool: Callable[[], StoreLimiter | None] = lambda: None,
    ) -> None:
        self.name = name
        self.rate = rate
        self.each: float = rate.seconds / rate.count
        """Seconds until one token is refilled."""
        self.clock: Callable[[], float] = clock
        self._max_keys = max_keys
        self._pool = pool
        self.whole_at: dict[str, float] = {}
        """Key -> time when its allowance is full again, in order of first use. The dictionary object never changes."""

    def __len__(self) -> int:
        return len(self.whole_at)

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Return the seconds until a key can take this much, or 0. Takes nothing."""
        now = self.clock()
        return pace_wait(self.whole_at.get(key, now), now, self.rate.count, self.rate.seconds, cost)

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take from a key's allowance. If it isn't enough, take nothing and return the seconds to wait."""
        wait = self.wait(key, cost)
        if wait <= 0:
            now, whole_at = self.clock(), self.whole_at
            if key not in whole_at and len(whole_at) >= self._max_keys:
                self._forget(now)
            whole_at[key] = max(now, whole_at.get(key, now)) + self.each * cost
        return wait

    async def charge(self, key: str) -> float:
        """Take one token. If none is left on any worker, take nothing and return the seconds to wait."""
        wait, pool = self.take(key), self._pool()
        if wait > 0 or pool is None:
            return wait
        decision = await pool.take([self.pace(key)])
        wait = 0.0 if decision is None else decision.results[0].wait
        if wait > 0:
            self.block(key, wait)
        return wait

    def report(self, key: str) -> float:
        """Take one token here and report it to the store later, for actions that have happened or can't wait."""
        wait, pool = self.take(key), self._pool()
        if wait <= 0 and pool is not None:
            pool.report(self.pace(key), lambda seconds: self.block(key, seconds))
        return wait

    def pace(self, key: str, cost: float = 1.0) -> Pace:
        """Return the charge for the store, with a hashed key."""
        return Pace(hash_key(self.name, key), self.rate.count, self.rate.seconds, cost, cost)

    def spend(self, key: str, cost: float) -> bool:
        """Take from a key's allowance, and return whether it was enough. See `SharedLimiter.spend`."""
        return self.take(key, cost) <= 0

    def put_back(self, key: str, cost: float) -> None:
        """Return tokens that weren't needed."""
        if key in self.whole_at:
            self.whole_at[key] -= self.each * cost

    def block(self, key: str, wait: float) -> None:
        """Block a key for a number of seconds, because another worker has reached its limit."""
        until = self.clock() + wait + self.rate.seconds - self.each
        self.whole_at[key] = max(until, self.whole_at.get(key, until))

    def count_remaining(self, key: str) -> int:
        """Return the remaining allowance of a key."""
        now = self.clock()
        return int((self.rate.seconds - max(0.0, self.whole_at.get(key, now) - now)) / self.each + 1e-9)

    def header_lines(self, key: str, wait: float) -> bytes:
        """Return header lines with a caller's limit and the time to wait."""
        return rate_lines(self.name, self.rate, self.count_remaining(key), wait)

    def _forget(self, now: float) -> None:
        """Remove keys with a full allowance, and the older half of the rest."""
        kept = {key: at for key, at in self.whole_at.items() if at > now}
        if len(kept) >= self._max_keys:
            kept = dict(list(kept.items())[len(kept) // 2 :])
        self.whole_at.clear()
        self.whole_at.update(kept)


def rate_lines(name: str, rate: Rate, remaining: int, wait: float) -> bytes:
    """Return header lines for any time-based limit."""
    policy, seconds = name.encode(), max(1, ceil(wait))
    return b'retry-after: %d\r\nratelimit-policy: "%b";q=%d;w=%d\r\nratelimit: "%b";r=%d;t=%d\r\n' % (
        seconds,
        policy,
        rate.count,
        rate.seconds,
        policy,
        remaining,
        seconds,
    )
