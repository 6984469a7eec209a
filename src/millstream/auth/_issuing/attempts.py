"""How often somebody may fail, counting those who are still trying: many at once get no more tries than one by one.

Where workers share a store, they count together. A try then takes a seat there, of which there are as many as failures
are left, so that tries at several workers at once are no more than those at one. While the store doesn't answer, each
worker counts alone.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex

from millstream._limits.gcra import Limiter, Rate
from millstream._limits.names import named
from millstream._limits.pool import Pool
from millstream._stores.rates import Pace, Seat
from millstream.auth._issuing.vault import Vault


class Attempts:
    """Some rates of failures, each for every key by itself. A try counts for one key of each."""

    __slots__ = ("_failures", "_trying", "_vault")

    def __init__(self, rates: Mapping[str, Rate], vault: Vault) -> None:
        self._failures = tuple(Limiter(name, rate) for name, rate in rates.items())
        self._trying: Counter[tuple[str, str]] = Counter()
        self._vault = vault

    @asynccontextmanager
    async def trying(self, *keys: str) -> AsyncGenerator[bool, None]:
        """Whether somebody may try inside the block, even if all who are trying fail."""
        if not all(self._may(limiter, key) for limiter, key in zip(self._failures, keys, strict=True)):
            yield False
            return
        tries = [(limiter.name, key) for limiter, key in zip(self._failures, keys, strict=True)]
        self._trying.update(tries)
        pool, seats = self._vault.pool, list[Seat]()
        try:
            yield pool is None or await self._sit(pool, keys, seats)
        finally:
            self._trying.subtract(tries)
            for each in tries:
                if not self._trying[each]:
                    del self._trying[each]
            if pool is not None and seats:
                await pool.give_back(seats)

    async def failed(self, *keys: str) -> None:
        """It was wrong."""
        pool = self._vault.pool
        for limiter, key in zip(self._failures, keys, strict=True):
            limiter.take(key)
            if pool is not None:
                await pool.take([_pace(limiter, key)])

    def _may(self, limiter: Limiter, key: str) -> bool:
        trying = self._trying.get((limiter.name, key), 0)
        return limiter.left(key) > trying if trying else limiter.wait(key) <= 0

    async def _sit(self, pool: Pool, keys: Sequence[str], seats: list[Seat]) -> bool:
        """Whether the others have left a try for each key; what is taken for that goes to `seats`."""
        charges = [_pace(limiter, key, cost=0.0) for limiter, key in zip(self._failures, keys, strict=True)]
        decision = await pool.take(charges)
        if decision is None:
            return True
        left = [int(taken.left + 1e-3) for taken in decision.taken]
        if min(left) < 1:
            return False
        me = token_hex(8)
        asked = [Seat(charge.key, count, me) for charge, count in zip(charges, left, strict=True)]
        decision = await pool.take(asked)
        if decision is None:
            return True
        if any(taken.wait > 0 for taken in decision.taken):
            return False
        seats += asked
        return True


def _pace(limiter: Limiter, key: str, *, cost: float = 1.0) -> Pace:
    """What to ask of the store; a cost of 0 only looks."""
    return Pace(named(limiter.name, key), limiter.rate.count, limiter.rate.seconds, cost, cost)
