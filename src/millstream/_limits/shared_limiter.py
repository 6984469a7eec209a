"""One rate for all workers together: the store decides, and a worker remembers its decisions.

A key that was denied is denied here until the time that the store named, without asking again. A key that asks again
and again gets a few tokens in advance, of rates that are large enough for that: 1 % of the rate for each worker at
most, so that the rate holds to that degree. Nothing here waits: `pool` asks the store.
"""

from collections.abc import Callable
from time import monotonic
from typing import Final

from msgspec import Struct

from millstream._limits.gcra import Limiter, Rate
from millstream._stores.rates import ChargeResult, Pace

_SHARE: Final = 100
"""One part in so many is what a worker takes in advance."""
_MOST: Final = 20
_LOST: Final = 5.0
"""Seconds after which an answer doesn't come any more."""
_MAX_KEYS: Final = 100_000
_HOT: Final = 1.0
"""Seconds: a key that comes again within this time gets tokens in advance."""


class _KnownPace(Struct):
    """What a worker knows of one key."""

    asked: float = 0.0
    """When the store was asked."""
    tokens: float = 0.0
    """Taken in advance, until `stale`: by then the store has refilled them, and they'd count twice."""
    stale: float = 0.0
    fetching: float = -_LOST
    """When some were last asked for; the answer sets it back."""
    denied_until: float = 0.0
    denied: float = 0.0
    """The cost that was denied; a smaller one may be granted earlier."""
    left: float = 0.0


class SharedLimiter:
    """One rate, for every key by itself, of which this worker has a part. For one event loop."""

    __slots__ = ("_alone", "_clock", "_known", "name", "rate", "workers")

    def __init__(self, name: str, rate: Rate, *, clock: Callable[[], float] = monotonic) -> None:
        # Configuration
        self.name = name
        self.rate = rate
        self._clock = clock
        # Process
        self.workers = 1
        """How many share the rate, as the store said last."""
        self._known: dict[str, _KnownPace] = {}
        self._alone: Limiter | None = None

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Seconds until the store may be asked for this much; 0 when it may be now, which isn't a promise."""
        known = self._known.get(key)
        if known is None or cost < known.denied:
            return 0.0
        return max(0.0, known.denied_until - self._clock())

    def spend(self, key: str, cost: float) -> bool:
        """Take from what was taken in advance, if that is enough."""
        known = self._known.get(key)
        if known is None or known.tokens < cost or known.stale <= self._clock():
            return False
        known.tokens -= cost
        known.left -= cost
        return True

    def put_back(self, key: str, cost: float) -> None:
        """It wasn't needed."""
        known = self._known.get(key)
        if known is not None:
            known.tokens += cost
            known.left += cost

    def pace(self, key: str, name: str, cost: float) -> Pace:
        """What to ask of the store, which knows the key by a name."""
        known, advance, now = self._known.get(key), min(_MOST, self.rate.count // _SHARE), self._clock()
        if known is not None and known.stale <= now:
            known.tokens = 0.0
        hot = known is not None and now - known.asked < _HOT
        if known is None or not hot or known.tokens >= cost or now - known.fetching < _LOST:
            return Pace(name, self.rate.count, self.rate.seconds, cost, cost)
        known.fetching = now
        return Pace(name, self.rate.count, self.rate.seconds, cost, cost + advance)

    def learn(self, key: str, asked: Pace, taken: ChargeResult) -> None:
        """The store has answered."""
        cost, advanced = asked.cost, asked.most > asked.cost
        now = self._clock()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MAX_KEYS:
                self._known = dict(list(self._known.items())[_MAX_KEYS // 2 :])
            known = self._known[key] = _KnownPace()
        known.asked, known.left = now, taken.left
        if advanced:
            known.fetching = -_LOST
        if taken.wait > 0:
            known.denied_until, known.denied = now + taken.wait, cost
        elif taken.amount > cost:
            known.tokens = taken.amount - cost + (known.tokens if known.stale > now else 0.0)
            known.stale = now + self.rate.seconds / self.rate.count * known.tokens
            known.left += known.tokens

    def left(self, key: str) -> int:
        """How many a key may still have, as far as this worker knows."""
        known = self._known.get(key)
        return self.rate.count if known is None else max(0, int(known.left))

    def alone(self) -> Limiter:
        """This worker's part of the rate, for as long as the store doesn't answer."""
        part = max(1, self.rate.count // self.workers)
        if self._alone is None or self._alone.rate.count != part:
            self._alone = Limiter(self.name, Rate(part, self.rate.seconds), clock=self._clock)
        return self._alone

    def rejoin(self) -> None:
        """The store answers again: what was decided alone doesn't count any more."""
        self._alone = None
