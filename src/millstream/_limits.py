"""Rate limits, quotas, and concurrency limits.

A rate uses GCRA, the generic cell rate algorithm, which keeps one number for each key: the time when its allowance is
full again. An action is allowed while that time is close enough, which permits a burst, refills evenly, and gives the
exact time to wait. If workers share a store, it decides (`StoreLimiter`), and a worker caches its decisions and applies
its own share while the store doesn't respond. A quota applies per calendar day or month in UTC, by the store's clock.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from math import ceil
from time import monotonic
from typing import Any

from msgspec import Struct, field

from millstream._copies import NotCopyable
from millstream._protocol.errors import LocalError
from millstream._recent import Recent
from millstream._stores.rates import (
    Charge,
    ChargeResult,
    ConcurrencySlot,
    Quota,
    RateCharge,
    drop_paces,
    pace_wait,
)
from millstream._stores.store import Store
from millstream._tasks import Tasks
from millstream._troubles import LogOnce

PATIENCE = 2.0
"""Seconds that a call waits for the store."""
PAUSE = 1.0
"""Seconds without requests to a store that didn't respond."""
_AT_ONCE = 100
"""Maximum number of slots to return in one request."""
_REPORTS = 64


class StoreLimiter(Struct, eq=False):
    """One worker's access to the limits in the store."""

    store: Store
    patience: float = PATIENCE
    clock: Callable[[], float] = monotonic
    outage: Any = None
    """A `LogOnce` that lasts while the store doesn't answer."""
    workers: int = 1
    """Number of workers that share the store, as last reported."""
    _until: float = 0.0
    _trying: bool = False
    _leaving: dict[tuple[str, str], ConcurrencySlot] = {}
    _returning: Tasks = field(default_factory=Tasks)
    _reporting: Tasks = field(default_factory=Tasks)

    def __post_init__(self) -> None:
        self.outage = LogOnce(
            self.store.troubles,
            "The store doesn't respond, so each worker enforces its own share of every limit",
            "The store is responding again. All workers share the limits again.",
        )

    async def take(self, charges: Sequence[Charge]) -> list[ChargeResult] | None:
        """Return the store's answer, or None if it doesn't respond."""
        if self.outage.lasts and (self._trying or self.clock() < self._until):
            return None
        self._trying = self.outage.lasts
        try:
            async with asyncio.timeout(self.patience):
                decision = await self.store.charge(charges)
        except BaseException as exc:  # the store may have charged nevertheless
            self.leave([charge for charge in charges if isinstance(charge, ConcurrencySlot)])
            if not isinstance(exc, LocalError | OSError):  # includes TimeoutError
                raise
            self._lose(exc)
            return None
        finally:
            self._trying = False
        self.outage.end()
        self.workers = max(1, len(self.store.workers.live))
        return decision

    def leave(self, slots: Sequence[ConcurrencySlot]) -> None:
        """Give slots back in the background."""
        for slot in slots:
            self._leaving[slot.key, slot.holder] = slot
        if self._leaving:
            self._returning.spawn_once(self._leave)

    def report(self, charge: Charge, refused: Callable[[float], None]) -> None:
        """Report a completed action to the store. `refused` receives the seconds to wait if it exceeded the limit."""
        if len(self._reporting) < _REPORTS:
            self._reporting.spawn(self._report(charge, refused))

    async def close(self) -> None:
        """Give back all pending slots if the store responds."""
        await self._reporting.close()
        await self._returning.settle(self.patience)
        await self._returning.close()

    async def _leave(self) -> None:
        while self._leaving:
            some = dict(list(self._leaving.items())[:_AT_ONCE])
            try:
                await self.store.release(list(some.values()))
            except (LocalError, OSError):
                await asyncio.sleep(PAUSE)  # The store frees the slots of a worker without a lease.
            else:
                for name in some:
                    del self._leaving[name]

    async def _report(self, charge: Charge, refused: Callable[[float], None]) -> None:
        decision = await self.take([charge])
        if decision is not None and decision[0].wait > 0:
            refused(decision[0].wait)

    def _lose(self, exc: Exception) -> None:
        self._until = self.clock() + PAUSE
        self.outage.fail(str(exc) or type(exc).__name__)


@lru_cache(maxsize=4096)
def hash_key(policy: str, key: str) -> str:
    """Return a short name for a key of a policy, so the store never sees addresses or principals."""
    return sha256(f"{policy}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


_ODD = re.compile(r"[^A-Za-z0-9_.-]")
"""Characters that a name in a header must not contain."""


def limit_name(kind: str, tool: str) -> str:
    """Return the name of a tool's own limit, for headers and the store."""
    return f"{kind}:{_ODD.sub('_', tool)}"


def concurrency_limits(owner: str, most: int, tool: str, most_of_tool: int) -> list[tuple[str, str, int]]:
    """Return the name, key, and maximum of each limit.

    Args:
        owner: The owner of the call.
        most: Maximum number of concurrent calls per owner, or 0 for no limit.
        tool: The name of the tool.
        most_of_tool: Maximum number of concurrent calls of the tool, or 0 for no limit.
    """
    limits = [("concurrency", owner, most)] if most and owner else []
    if most_of_tool:
        limits.append((limit_name("concurrency", tool), "", most_of_tool))
    return limits


_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"([1-9][0-9]{0,8}) ?/ ?(second|minute|hour|day)")


class Rate(Struct, frozen=True):
    """A number of actions per number of seconds, with a burst of the same size: ``Rate(60, 60)``."""

    count: int
    seconds: int

    @classmethod
    def of(cls, text: str) -> "Rate":
        """Parse ``100/minute``. The units are second, minute, hour, and day.

        Args:
            text: The rate.

        Raises:
            ValueError: The text isn't a rate.
        """
        match = _RATE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} isn't a rate. Use a number and a unit, such as 100/minute or 5/second.")
        return cls(int(match[1]), _UNITS[match[2]])


class Limiter(NotCopyable):
    """A limiter that applies one rate to each key: ``if (seconds := limiter.take(call.owner)): …``. For one event loop.

    Args:
        name: Name of the limit, for headers and the store.
        rate: Rate of each key.
        clock: Monotonic clock.
        max_keys: Maximum number of keys. At it, those with a full allowance are dropped, or else the older half.
        pool: Returns the store's limiter when the store is open. `charge` and `report` count there on all workers.
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
        """Return the seconds until a key can take this much, or 0. Takes nothing.

        Args:
            key: Key of the caller, or of another limited resource.
            cost: Tokens to take, by default a call takes one.
        """
        now = self.clock()
        return pace_wait(self.whole_at.get(key, now), now, self.rate.count, self.rate.seconds, cost)

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take from a key's allowance. If it isn't enough, take nothing and return the seconds to wait.

        Args:
            key: Key of the caller, or of another limited resource.
            cost: Tokens to take, by default a call takes one.
        """
        wait = self.wait(key, cost)
        if wait <= 0:
            now, whole_at = self.clock(), self.whole_at
            if key not in whole_at and len(whole_at) >= self._max_keys:
                drop_paces(whole_at, self._max_keys, now)
            whole_at[key] = max(now, whole_at.get(key, now)) + self.each * cost
        return wait

    async def charge(self, key: str) -> float:
        """Take one token. If none is left on any worker, take nothing and return the seconds to wait.

        Args:
            key: Key of the caller, or of another limited resource.
        """
        wait, pool = self.take(key), self._pool()
        if wait > 0 or pool is None:
            return wait
        decision = await pool.take([self.pace(key)])
        wait = 0.0 if decision is None else decision[0].wait
        if wait > 0:
            self.block(key, wait)
        return wait

    def report(self, key: str) -> float:
        """Take one token here and report it to the store later, for actions that have happened or can't wait.

        Args:
            key: Key of the caller, or of another limited resource.
        """
        wait, pool = self.take(key), self._pool()
        if wait <= 0 and pool is not None:
            pool.report(self.pace(key), lambda seconds: self.block(key, seconds))
        return wait

    def pace(self, key: str, cost: float = 1.0) -> RateCharge:
        """Return the charge for the store, with a hashed key.

        Args:
            key: Key of the caller, or of another limited resource.
            cost: Tokens to take, by default a call takes one.
        """
        return RateCharge(hash_key(self.name, key), self.rate.count, self.rate.seconds, cost, cost)

    def spend(self, key: str, cost: float) -> bool:
        """Take from a key's allowance and return whether it was enough.

        Args:
            key: Key of the caller, or of another limited resource.
            cost: Tokens to take, by default a call takes one.
        """
        return self.take(key, cost) <= 0

    def put_back(self, key: str, cost: float) -> None:
        """Give back tokens that weren't needed.

        Args:
            key: Key of the caller, or of another limited resource.
            cost: Number of tokens.
        """
        if key in self.whole_at:
            self.whole_at[key] -= self.each * cost

    def block(self, key: str, wait: float) -> None:
        """Block a key for a number of seconds, because another worker has reached its limit.

        Args:
            key: Key of the caller, or of another limited resource.
            wait: Number of seconds.
        """
        until = self.clock() + wait + self.rate.seconds - self.each
        self.whole_at[key] = max(until, self.whole_at.get(key, until))

    def count_remaining(self, key: str) -> int:
        """Return the remaining allowance of a key.

        Args:
            key: Key of the caller, or of another limited resource.
        """
        now = self.clock()
        return int((self.rate.seconds - max(0.0, self.whole_at.get(key, now) - now)) / self.each + 1e-9)

    def header_lines(self, key: str, wait: float) -> bytes:
        """Return header lines with a caller's limit and the time to wait.

        Args:
            key: Key of the caller, or of another limited resource.
            wait: Seconds to wait.
        """
        return rate_lines(self.name, self.rate, self.count_remaining(key), wait)


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


_MONTH = 32
"""Days to add to the first of a month to reach the next month."""


class Period(Struct, frozen=True):
    """A day or month, in seconds since 1970."""

    start: float
    end: float


class CalendarQuota:
    """A number of actions per day or month."""

    name = "quota"

    def __init__(self, text: str) -> None:
        """Parse ``10000/day`` or ``100000/month``, which the settings have checked."""
        count, _, unit = text.partition("/")
        self.count = int(count)
        self._monthly = unit.strip() == "month"
        self._now = Period(0.0, 0.0)

    @property
    def rate(self) -> Rate:
        """The quota as text, such as ``10000/day``."""
        return Rate(self.count, round(self._now.end - self._now.start))

    def at(self, key: str, cost: float, now: float) -> Quota:
        """Return the charge for a key at the present time."""
        if not self._now.start <= now < self._now.end:
            self._now = period(now, monthly=self._monthly)
        start, end = self._now.start, self._now.end
        return Quota(hash_key(f"{self.name} {start:.0f}", key), self.count, end, cost)


def period(now: float, *, monthly: bool) -> Period:
    """Return the day or month that contains a time."""
    start = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if not monthly:
        return Period(start.timestamp(), (start + timedelta(days=1)).timestamp())
    start = start.replace(day=1)
    return Period(start.timestamp(), (start + timedelta(days=_MONTH)).replace(day=1).timestamp())


_SHARE = 100
"""Fraction of the rate that a worker takes in advance."""
_MOST = 20
_LOST = 5.0
"""Seconds after which an answer is treated as lost."""
_MAX_KEYS = 100_000
_HOT = 1.0
"""Seconds within which a reused key gets tokens in advance."""


class _KnownPace(Struct):
    """A worker's cached state of one key."""

    asked_at: float = 0.0
    """Time of the last request to the store."""
    tokens: float = 0.0
    """Tokens taken in advance, valid until `stale`. The store has refilled them by then, so they would be counted
    twice."""
    stale: float = 0.0
    fetching: float = -_LOST
    """Time of the pending request for tokens. The answer resets it."""
    denied_until: float = 0.0
    denied: float = 0.0
    """The denied cost. A smaller cost can be granted earlier."""
    remaining: float = 0.0


class SharedLimiter(Struct, eq=False):
    """A limiter that applies this worker's share of one rate to each key. For one event loop."""

    name: str
    rate: Rate
    clock: Callable[[], float] = monotonic
    workers: int = 1
    """Number of workers that share the rate, as last reported by the store."""
    _known: Recent[str, _KnownPace] = field(default_factory=lambda: Recent(_MAX_KEYS))
    _alone: Limiter | None = None

    def wait(self, key: str, cost: float = 1.0) -> float:
        """Return the seconds until the store can be asked for this cost, or 0. The store may still deny it."""
        known = self._known.get(key)
        if known is None or cost < known.denied:
            return 0.0
        return max(0.0, known.denied_until - self.clock())

    def spend(self, key: str, cost: float) -> bool:
        """Spend tokens that were reserved in advance, and return whether there were enough."""
        known = self._known.get(key)
        if known is None or known.tokens < cost or known.stale <= self.clock():
            return False
        known.tokens -= cost
        known.remaining -= cost
        return True

    def put_back(self, key: str, cost: float) -> None:
        """Give back tokens that weren't needed."""
        known = self._known.get(key)
        if known is not None:
            known.tokens += cost
            known.remaining += cost

    def pace(self, key: str, cost: float) -> RateCharge:
        """Return the charge for the store, with a hashed key."""
        known, name, now = self._known.get(key), hash_key(self.name, key), self.clock()
        if known is not None and known.stale <= now:
            known.tokens = 0.0
        hot = known is not None and now - known.asked_at < _HOT
        advance = 0
        if known is not None and hot and known.tokens < cost and now - known.fetching >= _LOST:
            known.fetching, advance = now, min(_MOST, self.rate.count // _SHARE)
        return RateCharge(name, self.rate.count, self.rate.seconds, cost, cost + advance)

    def learn(self, key: str, asked: RateCharge, taken: ChargeResult) -> None:
        """Process the store's answer and discard this worker's own earlier decisions."""
        cost, advanced = asked.cost, asked.most > asked.cost
        now = self.clock()
        known = self._known.get(key)
        if known is None:
            self._known.keep(key, known := _KnownPace())
        known.asked_at, known.remaining = now, taken.remaining
        self._alone = None
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
        """Return this worker's share of the rate, used while the store doesn't respond."""
        part = max(1, self.rate.count // self.workers)
        if self._alone is None or self._alone.rate.count != part:
            self._alone = Limiter(self.name, Rate(part, self.rate.seconds), clock=self.clock)
        return self._alone
