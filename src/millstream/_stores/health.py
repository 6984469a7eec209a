"""Health checks and failure logging for stores.

A health check reads a key with a timeout, at most once a second, and checks whether the store may lose data. Failures
are logged once when they begin and once when they end, because an outage may last for hours.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Self

from msgspec import Struct

from millstream._copies import NotCopyable
from millstream._protocol.errors import LocalError
from millstream._stores.base import DataSource
from millstream._tasks import is_canceled

FRESH_SECONDS = 1.0
BOUND_SECONDS = 0.5
"""Timeout of a health check. Many probes give up after one second."""
PAUSE = 1.0
"""Seconds before a retry after a store failure."""
_KEY = "health"
"""A key that is never written. Any response means that the store is up."""

logger = logging.getLogger("millstream")


class StoreHealth(Struct, eq=False):
    """The health of one opened store."""

    kind: str
    """``memory``, for labels."""
    store: DataSource
    bound: float = BOUND_SECONDS
    clock: Callable[[], float] = monotonic
    up: bool = True
    """The result of the last check. It starts as True, because the store was opened."""
    _checked_at: float = -FRESH_SECONDS

    async def look(self) -> bool:
        """Check the store, at most once a second. Concurrent callers get the previous result."""
        now = self.clock()
        if now - self._checked_at < FRESH_SECONDS:
            return self.up
        self._checked_at, before = now, self.up
        try:
            async with asyncio.timeout(self.bound):
                await self.store.kv.get(_KEY)
            self.up = not await self.store.degraded_reason()  # the store logs the reason
        except (LocalError, OSError) as exc:  # a TimeoutError is one
            self.up = False
            if before:
                why = str(exc) or f"no answer within {self.bound:g} s"
                logger.error("The store doesn't respond: %s", why)
        return self.up


class LogOnce(Struct, NotCopyable, eq=False):
    """A context manager that suppresses store errors and logs the first of a series.

    Background loops pass ``catches=Exception``, so that an unexpected error doesn't end them silently. Its traceback is
    logged when it's the first one in a series, or when its type changes.

    Example:
        >>> trouble = LogOnce(logger, "The list can't be read; retrying", "The list can be read again.")
        >>> with trouble:
        ...     await read()
        >>> if trouble.lasts:
        ...     await asyncio.sleep(PAUSE)
    """

    logger: logging.Logger
    what: str
    """The message when the first error of a series occurs."""
    over: str
    """The message when the series ends."""
    catches: type[Exception] | tuple[type[Exception], ...] = (LocalError, OSError)
    """The errors to suppress."""
    lasts: bool = False
    """Whether the last attempt failed."""
    _unexpected: type[BaseException] | None = None
    """The type of the last unexpected error in this series."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if failure is None:
            if self.lasts:
                self.logger.warning("%s", self.over)
            self.lasts, self._unexpected = False, None
            return False
        if not isinstance(failure, self.catches):
            return False
        if not isinstance(failure, LocalError | OSError):
            if self._unexpected is not kind:
                self.logger.error("%s: %s", self.what, type(failure).__name__, exc_info=failure)
            self._unexpected = kind
        elif not self.lasts:
            why = (isinstance(failure, OSError) and failure.strerror) or failure
            self.logger.warning("%s: %s", self.what, why)
        self.lasts = True
        return True


async def run_on(
    event: asyncio.Event,
    work: Callable[[], Awaitable[None]],
    outage: LogOnce,
    *,
    every: float | None = None,
    pause: float | None = None,
) -> None:
    """Run a function each time an event is set, until canceled: ``host.run(run_on(changed, self.save, trouble))``.

    While it fails, the function is retried. No error ends the loop.

    Args:
        event: Set to request a run.
        work: The function.
        outage: Logs errors. It catches all of them from now on.
        every: Seconds after which the function runs without a request.
        pause: Seconds before a retry, `PAUSE` by default.
    """
    outage.catches = Exception
    while not is_canceled():
        with suppress(TimeoutError):
            async with asyncio.timeout(every):
                await event.wait()
        event.clear()
        with outage:
            await work()
        if outage.lasts:
            await asyncio.sleep(PAUSE if pause is None else pause)
            event.set()
