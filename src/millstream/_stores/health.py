"""Whether a store answers and keeps what it's given. A bounded `get` measures that, at most once a second however many
ask; a store that has reason to doubt itself says so.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from millstream._protocol.errors import LocalError
from millstream._stores.base import Store

FRESH_SECONDS = 1.0
BOUND_SECONDS = 0.5
"""A store that takes longer is as good as none; probes themselves often wait for one second only."""
_KEY = "health"
"""Nobody writes it: what counts is that the store says so."""

logger = logging.getLogger("millstream")


class StoreHealth:
    """The health of one opened store."""

    __slots__ = ("_clock", "_looked", "_store", "bound", "kind", "up")

    def __init__(
        self, kind: str, store: Store, *, bound: float = BOUND_SECONDS, clock: Callable[[], float] = monotonic
    ) -> None:
        # Configuration
        self.kind: str = kind
        """``memory``, for labels."""
        self.bound: float = bound
        self._store = store
        self._clock = clock
        # Process
        self.up: bool = True
        """What was measured last. It could be opened, at least."""
        self._looked = -FRESH_SECONDS

    async def look(self) -> bool:
        """Measure, unless that was done within the last second; whoever asks meanwhile gets what was measured last."""
        now = self._clock()
        if now - self._looked < FRESH_SECONDS:
            return self.up
        self._looked, before = now, self.up
        try:
            async with asyncio.timeout(self.bound):
                await self._store.kv.get(_KEY)
            self.up = not await self._store.doubt()  # it has said why
        except (LocalError, OSError) as exc:  # a TimeoutError is one
            self.up = False
            if before:
                why = str(exc) or f"nothing came within {self.bound:g} s"
                logger.error("The store doesn't answer: %s", why)
        return self.up
