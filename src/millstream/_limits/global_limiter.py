"""A rate limit for rare actions, shared by all workers. If workers share a store, every action is charged there."""

from collections.abc import Callable

from millstream._limits.gcra import Limiter, Rate, report_headers
from millstream._limits.hashed_keys import hash_key
from millstream._limits.store_limiter import StoreLimiter
from millstream._stores.rates import Pace


class GlobalLimiter:
    """A limiter that applies one rate to each key on all workers."""

    def __init__(self, name: str, rate: Rate, pool: Callable[[], StoreLimiter | None]) -> None:
        """Create the limiter. `pool` returns the store's limiter once the store is open."""
        self._limiter = Limiter(name, rate)
        self._pool = pool

    def wait(self, key: str) -> float:
        """Return the seconds until a key can take one token, as far as this worker knows. Takes nothing."""
        return self._limiter.wait(key)

    async def take(self, key: str) -> float:
        """Take one token. If none is left on any worker, take nothing and return the seconds to wait."""
        limiter, pool = self._limiter, self._pool()
        wait = limiter.take(key)
        if wait > 0 or pool is None:
            return wait
        decision = await pool.take([self._pace(key)])
        wait = 0.0 if decision is None else decision.results[0].wait
        if wait > 0:
            limiter.block(key, wait)
        return wait

    def report(self, key: str) -> float:
        """Take one token here and report it to the store later, for actions that have happened or can't wait."""
        limiter, pool = self._limiter, self._pool()
        wait = limiter.take(key)
        if wait <= 0 and pool is not None:
            pool.report(self._pace(key), lambda seconds: limiter.block(key, seconds))
        return wait

    def report_headers(self, key: str, wait: float) -> bytes:
        """Return header lines with the time to wait."""
        return report_headers(self._limiter, key, wait)

    def _pace(self, key: str) -> Pace:
        rate = self._limiter.rate
        return Pace(hash_key(self._limiter.name, key), rate.count, rate.seconds)
