"""The limits kept in the store, and the fallback while it doesn't respond."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from time import monotonic

from millstream._protocol.errors import LocalError
from millstream._stores.rates import Charge, ConcurrencySlot, Decision, Rates
from millstream._tasks import Tasks, cancel_all

PATIENCE = 2.0
"""Seconds that a call waits for the store."""
PAUSE = 1.0
"""Seconds without requests to a store that didn't respond."""
_AT_ONCE = 100
"""Maximum number of seats to return in one request."""
_REPORTS = 64

logger = logging.getLogger("millstream")


class StoreLimiter:
    """One worker's access to the limits in the store."""

    def __init__(self, rates: Rates, *, patience: float = PATIENCE, clock: Callable[[], float] = monotonic) -> None:
        self._rates = rates
        self._patience = patience
        self._clock = clock
        self.persistent: bool = rates.persistent
        """Whether seats in the store stay taken when all workers restart."""
        self.away: bool = False
        """Whether the store failed to answer the last request."""
        self.workers: int = 1
        """Number of workers that share the store, as last reported."""
        self._until = 0.0
        self._trying = False
        self._leaving: dict[tuple[str, str], ConcurrencySlot] = {}
        self._task: asyncio.Task[None] | None = None
        self._reporting = Tasks()

    async def take(self, charges: Sequence[Charge]) -> Decision | None:
        """Return the store's answer, or None if it doesn't respond."""
        if self.away and (self._trying or self._clock() < self._until):
            return None
        self._trying = self.away
        try:
            async with asyncio.timeout(self._patience):
                decision = await self._rates.take(charges)
        except BaseException as exc:  # the store may have charged nevertheless
            self.leave([charge for charge in charges if isinstance(charge, ConcurrencySlot)])
            if not isinstance(exc, LocalError | OSError):  # includes TimeoutError
                raise
            self._lose(exc)
            return None
        finally:
            self._trying = False
        if self.away:
            self.away = False
            logger.warning("The store responds again. Limits are shared by all workers.")
        self.workers = decision.workers
        return decision

    def leave(self, seats: Sequence[ConcurrencySlot]) -> None:
        """Return slots in the background."""
        for seat in seats:
            self._leaving[seat.key, seat.holder] = seat
        if self._leaving and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._leave())

    async def give_back(self, seats: Sequence[ConcurrencySlot]) -> None:
        """Return seats now, so they can be taken again. If the store doesn't respond, return them later."""
        try:
            async with asyncio.timeout(self._patience):
                await self._rates.leave(seats)
        except BaseException as exc:
            self.leave(seats)
            if not isinstance(exc, LocalError | OSError):
                raise

    def report(self, charge: Charge, refused: Callable[[float], None]) -> None:
        """Report a completed action to the store. `refused` receives the seconds to wait if it exceeded the limit."""
        if len(self._reporting) < _REPORTS:
            self._reporting.spawn(self._report(charge, refused))

    async def close(self) -> None:
        """Return all pending seats if the store answers."""
        await self._reporting.close()
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=self._patience)
        await cancel_all(self._task)

    async def _leave(self) -> None:
        while self._leaving:
            some = dict(list(self._leaving.items())[:_AT_ONCE])
            try:
                await self._rates.leave(list(some.values()))
            except (LocalError, OSError):
                await asyncio.sleep(PAUSE)  # The store frees the seats of a worker without a lease.
            else:
                for name in some:
                    del self._leaving[name]

    async def _report(self, charge: Charge, refused: Callable[[float], None]) -> None:
        decision = await self.take([charge])
        if decision is not None and decision.results[0].wait > 0:
            refused(decision.results[0].wait)

    def _lose(self, exc: Exception) -> None:
        self._until = self._clock() + PAUSE
        if not self.away:
            self.away = True
            logger.warning(
                "The store doesn't respond (%s). Until it does, each worker enforces its own share of every limit.",
                str(exc).rstrip(".") or type(exc).__name__,
            )
