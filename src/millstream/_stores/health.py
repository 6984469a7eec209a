"""Health checks of stores.

A health check reads a key with a timeout, at most once a second, and checks whether the store may lose data.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from msgspec import Struct, field

from millstream._protocol.errors import LocalError
from millstream._stores.base import DataSource
from millstream._troubles import LogOnce, Troubles

FRESH_SECONDS = 1.0
BOUND_SECONDS = 0.5
"""Timeout of a health check. Many probes give up after one second."""
_KEY = "health"
"""A key that is never written. Any response means that the store is up."""


class StoreHealth(Struct, eq=False):
    """The health of one opened store."""

    kind: str
    """``memory``, for labels."""
    store: DataSource
    bound: float = BOUND_SECONDS
    clock: Callable[[], float] = monotonic
    troubles: Troubles = field(default_factory=Troubles)
    """What fails on this worker."""
    trouble: Any = None
    """A `LogOnce` that begins with the first check that fails."""
    _checked_at: float = -FRESH_SECONDS

    def __post_init__(self) -> None:
        self.trouble = LogOnce(self.troubles, "The store doesn't respond", "The store responds again.")

    @property
    def up(self) -> bool:
        """The result of the last check. It starts as True, because the store was opened."""
        return not self.trouble.lasts

    async def look(self) -> bool:
        """Check the store, at most once a second. Concurrent callers get the previous result."""
        now = self.clock()
        if now - self._checked_at < FRESH_SECONDS:
            return self.up
        self._checked_at = now
        trouble = self.trouble
        try:
            async with asyncio.timeout(self.bound):
                await self.store.kv.get(_KEY)
            if reason := await self.store.degraded_reason():
                trouble.what = "The store can't do all of its work"
                trouble.count(reason)  # the store logs it, and its end
            elif trouble.logged_at:
                trouble.end()
            else:
                trouble.forget()
        except (LocalError, OSError) as exc:  # a TimeoutError is one
            trouble.what = "The store doesn't respond"
            trouble.fail(str(exc) or f"no answer within {self.bound:g} s")
        return self.up
