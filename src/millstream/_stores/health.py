"""Whether a store answers and keeps what it's given. A bounded `get` measures that, at most once a second however many
ask; a store that has reason to doubt itself says so. And what the log has about work on a store that fails: a line when
it begins, and one when it's over. A store may be away for hours, and says the same each time.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self

from millstream._protocol.errors import LocalError
from millstream._stores.base import Store

FRESH_SECONDS = 1.0
BOUND_SECONDS = 0.5
"""A store that takes longer is as good as none; probes themselves often wait for one second only."""
_KEY = "health"
"""A key that is never written. Only an answer of the store matters."""

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
        """The last measurement. The store could at least be opened."""
        self._looked = -FRESH_SECONDS

    async def look(self) -> bool:
        """Measure, unless there is a measurement from the last second. Concurrent callers get the previous one."""
        now = self._clock()
        if now - self._looked < FRESH_SECONDS:
            return self.up
        self._looked, before = now, self.up
        try:
            async with asyncio.timeout(self.bound):
                await self._store.kv.get(_KEY)
            self.up = not await self._store.degraded_reason()  # it has said why
        except (LocalError, OSError) as exc:  # a TimeoutError is one
            self.up = False
            if before:
                why = str(exc) or f"nothing came within {self.bound:g} s"
                logger.error("The store doesn't answer: %s", why)
        return self.up


class LogOnce:
    """Takes what a store raises inside a ``with`` block, and says so once.

    Example:
        >>> trouble = LogOnce(logger, "The list can't be read, which is tried again", "The list is read again.")
        >>> with trouble:
        ...     await read()
        >>> if trouble.lasts:
        ...     await asyncio.sleep(PAUSE)
    """

    __slots__ = ("_logger", "_over", "_what", "lasts")

    def __init__(self, logger: logging.Logger, what: str, over: str) -> None:
        self._logger = logger
        self._what = what
        self._over = over
        self.lasts = False
        """The last try has failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if failure is None:
            if self.lasts:
                self._logger.warning("%s", self._over)
            self.lasts = False
            return False
        if not isinstance(failure, LocalError | OSError):
            return False
        if not self.lasts:
            why = (isinstance(failure, OSError) and failure.strerror) or failure
            self._logger.warning("%s: %s", self._what, why)
        self.lasts = True
        return True
