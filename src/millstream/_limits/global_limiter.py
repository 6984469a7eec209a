"""One rate for all workers, of what happens seldom: the store is asked each time, where workers share one.

While the store doesn't answer, each worker counts alone, with the whole rate.
"""

from collections.abc import Callable

from millstream._limits.gcra import Limiter, Rate, report_headers
from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._stores.rates import Pace


class GlobalLimiter:
    """The rate, for every key by itself."""

    __slots__ = ("_limiter", "_pool")

    def __init__(self, name: str, rate: Rate, pool: Callable[[], StoreLimiter | None]) -> None:
        """`pool` gives the way to the store, once there is one."""
        self._limiter = Limiter(name, rate)
        self._pool = pool

    def wait(self, key: str) -> float:
        """Seconds until a key may have one, as far as this worker knows. Takes nothing."""
        return self._limiter.wait(key)

    async def take(self, key: str) -> float:
        """Take one, if no worker has given too many; else take nothing, and give the seconds until it may be had."""
        limiter, pool = self._limiter, self._pool()
        wait = limiter.take(key)
        if wait > 0 or pool is None:
            return wait
        decision = await pool.take([self._pace(key)])
        wait = 0.0 if decision is None else decision.taken[0].wait
        if wait > 0:
            limiter.block(key, wait)
        return wait

    def report(self, key: str) -> float:
        """Take one here, and let the others know soon: for what has happened, or for who can't wait for the store."""
        limiter, pool = self._limiter, self._pool()
        wait = limiter.take(key)
        if wait <= 0 and pool is not None:
            pool.report(self._pace(key), lambda seconds: limiter.block(key, seconds))
        return wait

    def report_headers(self, key: str, wait: float) -> bytes:
        """Header lines that say when to come back."""
        return report_headers(self._limiter, key, wait)

    def _pace(self, key: str) -> Pace:
        rate = self._limiter.rate
        return Pace(hash_key(self._limiter.name, key), rate.count, rate.seconds)
