"""What fails for reasons that aren't the callers': one table on each worker.

Failures are logged when they begin and when they end, and once an hour between, because an outage may last for days.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from time import localtime, strftime, time
from types import TracebackType
from typing import Self
from weakref import WeakSet

from msgspec import Struct, field, structs

from millstream._copies import NotCopyable
from millstream._protocol.errors import LocalError
from millstream._protocol.redaction import redact_foreign
from millstream._tasks import is_canceled

logger = logging.getLogger("millstream")

PAUSE = 1.0
"""Seconds before a retry after a failure."""
_LOG_SECONDS = 3600.0
"""Minimum seconds between two messages about a lasting failure, and the time after which it has ended if nothing else
failed."""


class Trouble(Struct, frozen=True):
    """A failure that an operator has to know: what fails, since when, and what to do."""

    what: str
    since: float
    """Unix time of the first failure."""
    count: int
    """Number of failures since then, in all workers."""
    reason: str
    """The last failure. It may contain addresses."""
    remedy: str


class Failure(Struct):
    """When something failed, and how."""

    at: float
    text: str


class UpstreamState(Struct):
    """The facts that explain the state of a gateway's upstream, in `/health` and `millstream doctor`."""

    name: str
    state: str
    reason: str = ""
    since: float = 0
    failed_reads: int = 0
    revision: str = ""
    transport: str = ""
    listed_at: float | None = None
    accounts: bool = False
    account: str = ""
    needs_account: bool = False
    last_error: Failure | None = None
    quarantined: int | None = None
    workers: dict[str, int] = {}


_NO_TROUBLE = Trouble("", 0, 0, "", "")
_CHECK_STORE = (
    "Check that the store runs, accepts the server's credentials, and has space. The server's log has other errors."
)
_REPORT = "Report this error with its traceback in the server's log."
MAX_TROUBLES = 100
"""Maximum number of troubles to show."""


class Troubles(Struct, NotCopyable, eq=False):
    """What fails on this worker at the moment: ``LogOnce(store.troubles, …)``

    `/health`, the metrics, and ``doctor`` show it. A series whose owner is gone isn't listed.
    """

    lasting: WeakSet["LogOnce"] = field(default_factory=WeakSet["LogOnce"])
    sources: list[Callable[[], Iterable[Trouble]]] = []
    """Return the troubles of parts that know them anyway."""

    def describe(self) -> list[Trouble]:
        """Return what fails now, the oldest first."""
        return merge_troubles([(each.trouble for each in self.lasting), *(source() for source in self.sources)])

    def end_old(self) -> None:
        """End what hasn't failed for an hour, because nobody may try it again."""
        for each in list(self.lasting):
            if each.is_old:
                each.end(f"{each.over.rstrip('.')}, or there were no attempts for an hour.")


def merge_troubles(workers: Iterable[Iterable[Trouble]]) -> list[Trouble]:
    """Merge troubles by name: the first time, the sum of the counts, and the first one's reason."""
    merged: dict[str, Trouble] = {}
    for each in chain.from_iterable(workers):
        if (other := merged.get(each.what)) is not None:
            merged[each.what] = structs.replace(
                other, since=min(other.since, each.since), count=other.count + each.count
            )
        else:
            merged[each.what] = each
    return sorted(merged.values(), key=lambda each: each.since)[:MAX_TROUBLES]


def join_store_troubles(troubles: Sequence[Trouble]) -> list[Trouble]:
    """Return troubles with those of the store as one, because an outage of it fails much. Its reason names the others.

    Args:
        troubles: The oldest first.
    """
    about_store = [each for each in troubles if each.remedy == _CHECK_STORE]
    if len(about_store) < 2:
        return [*troubles]
    first, *others = about_store
    effects = ". ".join(each.what.removesuffix("; retrying") for each in others)
    total = sum(each.count for each in about_store)
    joined = structs.replace(first, count=total, reason=f"{first.reason.rstrip('.')}. {effects}.")
    return [joined if each is first else each for each in troubles if each not in others]


class LogOnce(Struct, NotCopyable, eq=False, weakref=True):
    """A context manager that suppresses store errors and logs the first of a series, and another one each hour.

    Background loops pass ``catches=Exception``, so that an unexpected error doesn't end them silently. Its traceback is
    logged when it's the first one in a series, or when its type changes.

    Example:
        >>> trouble = LogOnce(host.troubles, "The list can't be read; retrying", "The list can be read again.")
        >>> with trouble:
        ...     await read()
        >>> if trouble.lasts:
        ...     await asyncio.sleep(PAUSE)
    """

    table: Troubles | None
    """Lists the series while it lasts. None if no call or event fails, or if its end may be noticed late."""
    what: str
    """The message when the first error of a series occurs."""
    over: str
    """The message when the series ends."""
    catches: type[Exception] | tuple[type[Exception], ...] = (LocalError, OSError)
    """The errors to suppress."""
    lasts: bool = False
    """Whether the last attempt failed."""
    remedy: str = _CHECK_STORE
    """What the operator can do."""
    trouble: Trouble = _NO_TROUBLE
    """The series."""
    clock: Callable[[], float] = time
    logged_at: float = 0
    """Time of the last message about the series, or 0 if there is none."""
    failed_at: float = 0
    """Time of the last failure."""
    _unexpected: type[BaseException] | None = None
    """The type of the last unexpected error in this series."""

    @property
    def is_old(self) -> bool:
        """Whether the last failure was more than an hour ago."""
        return self.clock() - self.failed_at > _LOG_SECONDS

    @property
    def _is_due(self) -> bool:
        return self.clock() - self.logged_at >= _LOG_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if failure is None:
            self.end()
            return False
        if not isinstance(failure, self.catches):
            return False
        if not isinstance(failure, LocalError | OSError):
            self.count(type(failure).__name__, _REPORT)
            if self._unexpected is not kind or self._is_due:
                self.logged_at = self.clock()
                logger.error("%s: %s", self.what, type(failure).__name__, exc_info=failure)
            self._unexpected = kind
        else:
            self.fail(str((isinstance(failure, OSError) and failure.strerror) or failure))
        return True

    def fail(self, reason: str, remedy: str = "") -> None:
        """Begin the series, or count another failure.

        Args:
            reason: Why it failed. Credentials in it are redacted.
            remedy: Replaces the usual one. If the reason ends with it, the words stay as they are.
        """
        self.count(reason, remedy)
        if self._is_due:
            self.logged_at = self.clock()
            trouble = self.trouble
            again = f" ({trouble.count} failures since {local_time(trouble.since)})" if trouble.count > 1 else ""
            logger.warning("%s%s: %s", self.what, again, trouble.reason)

    def goes_on(self) -> None:
        """Keep the series, if there's one, although nothing is tried at the moment."""
        if self.lasts:
            self.failed_at = self.clock()

    def end(self, over: str = "") -> None:
        """End the series, if there's one.

        Args:
            over: Replaces the usual message.
        """
        if not self.lasts:
            return
        times = f" It failed {self.trouble.count} times since {local_time(self.trouble.since)}."
        logger.warning("%s%s", over or self.over, times if self.trouble.count > 1 else "")
        self.forget()

    def forget(self) -> None:
        """End the series without a message, because what failed no longer exists."""
        self.trouble = _NO_TROUBLE
        self.lasts, self._unexpected, self.logged_at = False, None, 0
        if self.table is not None:
            self.table.lasting.discard(self)

    def count(self, reason: str, remedy: str = "") -> None:
        """Begin the series, or count another failure, without a message, because there is one already.

        Args:
            reason: As for `fail`.
            remedy: As for `fail`.
        """
        before, self.lasts, self.failed_at = self.trouble, True, self.clock()
        why = redact_foreign(reason, remedy)
        self.trouble = Trouble(self.what, before.since or self.failed_at, before.count + 1, why, remedy or self.remedy)
        if self.table is not None:
            self.table.lasting.add(self)


def local_time(seconds: float) -> str:
    """Return a time as text, in the local time zone."""
    return strftime("%Y-%m-%d %H:%M:%S", localtime(seconds))


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
    try:
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
    finally:
        outage.forget()
