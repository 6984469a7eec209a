"""How often something may happen: GCRA, the generic cell rate algorithm, with one number for each key.

The number is the time at which the key's allowance is whole again. Something is allowed while that time is not too far
ahead, which permits a burst, refills evenly, and says exactly how long to wait. These decisions are of one worker.
Nothing here knows who is limited, or why.
"""

import re
from collections.abc import Callable
from math import ceil
from time import monotonic

from msgspec import Struct

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,8}) ?/ ?(second|minute|hour|day)")
_SLACK = 1e-6
"""Seconds that sums of fractions may be off."""


class Rate(Struct, frozen=True):
    """So many in so many seconds, all of them at once if need be."""

    count: int
    seconds: int

    @classmethod
    def of(cls, text: str) -> "Rate":
        """Read ``100/minute``; the units are second, minute, hour and day.

        Raises:
            ValueError: it is something else.
        """
        match = _RATE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a rate. Write a number and a unit, such as 100/minute or 5/second.")
        return cls(int(match[1]), _UNITS[match[2]])


class Limiter:
    """One rate, for every key by itself. For one event loop."""

    __slots__ = ("_max_keys", "clock", "each", "name", "rate", "whole_at")

    def __init__(
        self, name: str, rate: Rate, *, clock: Callable[[], float] = monotonic, max_keys: int = 100_000
    ) -> None:
        # Configuration
        self.name = name
        self.rate = rate
        self.each: float = rate.seconds / rate.count
        """Seconds in which one comes back."""
        self.clock: Callable[[], float] = clock
        self._max_keys = max_keys
        # Process
        self.whole_at: dict[str, float] = {}
        """Key -> when its allowance is whole again; in the order of first use. It's always the same dictionary."""

    def __len__(self) -> int:
        return len(self.whole_at)

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Seconds until a key may have this much; 0 when it may now. Takes nothing."""
        now = self.clock()
        whole_at = self.whole_at.get(key, now)
        missing = whole_at - now - self.rate.seconds + self.each * min(cost, self.rate.count)
        return missing if missing > _SLACK else 0.0

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take from a key's allowance, if it is enough; else take nothing, and give the seconds until it will be."""
        wait = self.wait(key, cost)
        if wait <= 0:
            now, whole_at = self.clock(), self.whole_at
            if key not in whole_at and len(whole_at) >= self._max_keys:
                self._forget(now)
            whole_at[key] = max(now, whole_at.get(key, now)) + self.each * cost
        return wait

    def put_back(self, key: str, cost: float) -> None:
        """What was taken wasn't needed."""
        if key in self.whole_at:
            self.whole_at[key] -= self.each * cost

    def block(self, key: str, wait: float) -> None:
        """Allow a key nothing for so many seconds, because another worker knows that it had enough."""
        until = self.clock() + wait + self.rate.seconds - self.each
        self.whole_at[key] = max(until, self.whole_at.get(key, until))

    def left(self, key: str) -> int:
        """How many a key may still have now."""
        now = self.clock()
        return int((self.rate.seconds - max(0.0, self.whole_at.get(key, now) - now)) / self.each + 1e-9)

    def _forget(self, now: float) -> None:
        """Make room: those whose allowance is whole need no entry; of the rest, the older half goes."""
        kept = {key: at for key, at in self.whole_at.items() if at > now}
        if len(kept) >= self._max_keys:
            kept = dict(list(kept.items())[len(kept) // 2 :])
        self.whole_at.clear()
        self.whole_at.update(kept)


def report_headers(limiter: Limiter, key: str, wait: float) -> bytes:
    """Header lines that tell a caller what its limit is and when to come back."""
    return rate_lines(limiter.name, limiter.rate, limiter.left(key), wait)


def rate_lines(name: str, rate: Rate, left: int, wait: float) -> bytes:
    """Return the same of any limit that has a time.

    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/ and RFC 9110 §10.2.3.
    """
    policy, seconds = name.encode(), max(1, ceil(wait))
    return b'retry-after: %d\r\nratelimit-policy: "%b";q=%d;w=%d\r\nratelimit: "%b";r=%d;t=%d\r\n' % (
        seconds,
        policy,
        rate.count,
        rate.seconds,
        policy,
        left,
        seconds,
    )
