"""A rate limit shared by all workers: the store decides, and each worker caches its decisions."""

from collections.abc import Callable
from time import monotonic

from msgspec import Struct

from millstream._limits.gcra import Limiter, Rate
from millstream._limits.hashed_keys import hash_key
from millstream._stores.rates import ChargeResult, Pace

_SHARE = 100
"""A worker takes this fraction of the rate in advance."""
_MOST = 20
_LOST = 5.0
"""Seconds after which an answer counts as lost."""
_MAX_KEYS = 100_000
_HOT = 1.0
"""A key used again within this number of seconds gets tokens in advance."""


class _KnownPace(Struct):
    """A worker's cached state of one key."""

    asked_at: float = 0.0
    """Time of the last request to the store."""
    tokens: float = 0.0
    """Tokens taken in advance, valid until `stale`. The store has refilled them by then, so they would count twice."""
    stale: float = 0.0
    fetching: float = -_LOST
    """Time of the pending request for tokens. The answer resets it."""
    denied_until: float = 0.0
    denied: float = 0.0
    """The denied cost. A smaller cost can be granted earlier."""
    remaining: float = 0.0


class SharedLimiter:
    """A limiter that applies this worker's share of one rate to each key. For one event loop."""

    def __init__(self, name: str, rate: Rate, *, clock: Callable[[], float] = monotonic) -> None:
        self.name = name
        self.rate = rate
        self._clock = clock
        self.workers = 1
        """Number of workers that share the rate, as last reported by the store."""
        self._known: dict[str, _KnownPace] = {}
        self._alone: Limiter | None = None

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Return the seconds until the store can be asked for this cost, or 0. The store may still deny it."""
        known = self._known.get(key)
        if known is None or cost < known.denied:
            return 0.0
        return max(0.0, known.denied_until - self._clock())

    def spend(self, key: str, cost: float) -> bool:
        """Take from the tokens taken in advance, if they are enough."""
        known = self._known.get(key)
        if known is None or known.tokens < cost or known.stale <= self._clock():
            return False
        known.tokens -= cost
        known.remaining -= cost
        return True

    def put_back(self, key: str, cost: float) -> None:
        """Return tokens that weren't needed."""
        known = self._known.get(key)
        if known is not None:
            known.tokens += cost
            known.remaining += cost

    def pace(self, key: str, cost: float) -> Pace:
        """Return the charge for the store, with a hashed key."""
        known, name, now = self._known.get(key), hash_key(self.name, key), self._clock()
        if known is not None and known.stale <= now:
            known.tokens = 0.0
        hot = known is not None and now - known.asked_at < _HOT
        if known is None or not hot or known.tokens >= cost or now - known.fetching < _LOST:
            return Pace(name, self.rate.count, self.rate.seconds, cost, cost)
        known.fetching = now
        return Pace(name, self.rate.count, self.rate.seconds, cost, cost + min(_MOST, self.rate.count // _SHARE))

    def learn(self, key: str, asked: Pace, taken: ChargeResult) -> None:
        """Process the store's answer."""
        cost, advanced = asked.cost, asked.most > asked.cost
        now = self._clock()
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MAX_KEYS:
                self._known = dict(list(self._known.items())[_MAX_KEYS // 2 :])
            known = self._known[key] = _KnownPace()
        known.asked_at, known.remaining = now, taken.remaining
        if advanced:
            known.fetching = -_LOST
        if taken.wait > 0:
            known.denied_until, known.denied = now + taken.wait, cost
        elif taken.amount > cost:
            known.tokens = taken.amount - cost + (known.tokens if known.stale > now else 0.0)
            known.stale = now + self.rate.seconds / self.rate.count * known.tokens
            known.remaining += known.tokens

    def count_remaining(self, key: str) -> int:
        """Return the remaining allowance of a key, as far as this worker knows."""
        known = self._known.get(key)
        return self.rate.count if known is None else max(0, int(known.remaining))

    def alone(self) -> Limiter:
        """Return this worker's share of the rate, used while the store doesn't answer."""
        part = max(1, self.rate.count // self.workers)
        if self._alone is None or self._alone.rate.count != part:
            self._alone = Limiter(self.name, Rate(part, self.rate.seconds), clock=self._clock)
        return self._alone

    def rejoin(self) -> None:
        """Discard local decisions after the store has answered again."""
        self._alone = None
