"""Slots that several owners use for a while: processes, and worker threads for `def` functions.

In a thread, a blocking function doesn't stall the event loop.
"""

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from millstream._override import override
from millstream._protocol.errors import ToolUnavailable
from millstream._protocol.principal import Share
from millstream._tasks import outcome_of, run_in_thread

WAIT_TIMEOUT = 30.0
"""Seconds that a request waits for a slot."""
_MAX_WAITING = 1000
"""Maximum waiting requests for one pool, half of them for one owner."""


class Pool(Share):
    """Slots that owners use for a while, such as processes. `acquire` waits until one is free.

    A single owner can hold all slots. With several owners, an eighth of them is reserved for owners without any. A
    released slot goes to the waiting owner that holds the fewest. Equal ones take turns.

    Args:
        maximum: Number of slots.
        on_wait: Called when a request starts to wait, to release a slot that isn't in use.
        several: Whether there's more than one owner, if that's known in advance.

    Example:
        >>> if not await processes.acquire(call.owner):
        ...     raise ToolError("Too many of your calls are waiting. Try again later.")
        >>> try:
        ...     ...
        ... finally:
        ...     processes.leave(call.owner)
    """

    def __init__(self, maximum: int, *, on_wait: Callable[[], object] = lambda: None, several: bool = False) -> None:
        super().__init__(maximum, each=maximum)
        self.waiting: Share = Share(_MAX_WAITING)
        """The waiting requests."""
        self._on_wait = on_wait
        self._first_owner = ""
        self.several: bool = several
        """Whether there's more than one owner. Set it if that's known in advance."""
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting owners, the one served last at the end."""

    @override
    def resize(self, maximum: int) -> None:
        """Change the number of slots. Owners keep what they hold beyond it."""
        super().resize(maximum)
        self.leave("", 0)  # for those who wait

    @override
    def has_room(self, owner: str, amount: int = 1) -> bool:
        """Return whether an owner can currently take this many more slots."""
        kept = min(-(-self.maximum // 8), self.maximum - 1) if self.several and owner and self.count(owner) else 0
        return self.used + amount <= self.maximum - kept

    @override
    def take(self, owner: str, amount: int = 1) -> bool:
        """Take slots for an owner. Return False without taking any if there aren't enough."""
        self._first_owner = self._first_owner or owner
        self.several = self.several or owner not in ("", self._first_owner)
        return super().take(owner, amount)

    async def acquire(self, owner: str) -> bool:
        """Take one slot as soon as one is free.

        Return False if none is free within `WAIT_TIMEOUT`, or if too many requests are already waiting.

        Args:
            owner: The owner of the slot (see `Call.owner`).
        """
        if self.take(owner):
            return True
        if not self.waiting.take(owner):
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(future)
        self._on_wait()
        try:
            async with asyncio.timeout(WAIT_TIMEOUT):
                await future
        except (asyncio.CancelledError, TimeoutError) as exc:
            if future.cancelled():
                self._remove(owner, future)
            else:  # the slot was assigned at the same time
                self.leave(owner)
            if isinstance(exc, TimeoutError):
                return False
            raise
        finally:
            self.waiting.leave(owner)
        return True

    def move(self, source: str, target: str) -> None:
        """Transfer a slot to another owner, for which ``has_room(target, 0)`` must be true.

        Args:
            source: The owner that holds it.
            target: The owner that gets it.
        """
        super().leave(source)
        super().take(target)

    @override
    def leave(self, owner: str, amount: int = 1) -> None:
        """Release slots taken by `take` or `acquire`."""
        super().leave(owner, amount)
        while self._queues:
            owner = self.next_owner
            if not self.take(owner):
                return
            future = self._queues[owner][0]
            self._remove(owner, future)
            if owner in self._queues:
                self._queues[owner] = self._queues.pop(owner)
            if future.done():  # canceled
                super().leave(owner)
            else:
                future.set_result(None)

    @property
    def next_owner(self) -> str:
        """The waiting owner that gets the next slot, or an empty string if none is waiting."""
        return min(self._queues, key=lambda owner: self.count(owner) if owner else 0, default="")

    def _remove(self, owner: str, future: asyncio.Future[None]) -> None:
        queue = self._queues.get(owner, deque())
        with suppress(ValueError):  # removed by `leave`
            queue.remove(future)
        if not queue:
            self._queues.pop(owner, None)


T = TypeVar("T")

logger = logging.getLogger("millstream")

Jobs = SimpleQueue[Callable[[], object] | None]
"""The queue of jobs for worker threads, which must not raise. None ends a thread."""


class ThreadsBusy(ToolUnavailable):
    """A call waited too long for a worker thread."""


class Threads:
    """Worker threads for `def` functions. A slot is freed when the function ends, even if the caller left earlier."""

    def __init__(self, size: int) -> None:
        self.places: Pool = Pool(size)
        self._started = 0
        self._jobs: Jobs = SimpleQueue()
        """Never longer than the number of threads, because calls without a slot wait in `places`."""

    @property
    def full(self) -> bool:
        """Whether every thread is busy."""
        return not self.places.has_room("")

    async def run(self, function: Callable[..., Any], *args: Any, owner: str = "") -> Any:
        """Run a function in a worker thread, as soon as one is free.

        Args:
            args: Its arguments.
            owner: The caller whose share of the threads it uses (see `Call.owner`).

        Raises:
            ThreadsBusy: No thread was free within `WAIT_TIMEOUT`, or too many calls are waiting.
        """
        places = self.places
        if not (places.take(owner) or await places.acquire(owner)):
            raise ThreadsBusy(
                f"The worker threads are busy: your calls use {places.count(owner)} of {places.maximum}. Try again "
                "later."
            )
        if self._started < places.used:
            self._started += 1
            # Daemon threads, so that the process can end while a function is still running.
            threading.Thread(target=work, args=(self._jobs,), name=f"millstream_{self._started}", daemon=True).start()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.put(partial(self._run, future, owner, _with_context(function, *args)))
        try:
            return await future
        finally:
            del future  # the exception's traceback refers to this frame

    def lend(self, owner: str) -> None:
        """Give back the slot of a thread that waits for an answer. Another thread can use it."""
        self._started -= 1
        self.places.leave(owner)

    async def take_back(self, owner: str) -> None:
        """Take a slot for a thread that has waited.

        Raises:
            ThreadsBusy: As for `run`.
        """
        if not (self.places.take(owner) or await self.places.acquire(owner)):
            raise ThreadsBusy("The worker threads are busy. Try again later.")
        self._started += 1

    def take_back_now(self, owner: str) -> None:
        """Take a slot even if there's none, for a thread that cleans up."""
        self.places.force(owner)
        self._started += 1

    async def run_anyway(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function in a worker thread, or in a new one if all are busy. For cleanup after a call."""
        if not self.full:
            return await self.run(function, *args)
        return await run_in_thread(_with_context(function, *args), "millstream_end")

    def close(self) -> None:
        """End all threads when their functions are done, without waiting."""
        busy = self.places.used
        if busy:
            threads = "1 thread is still running code" if busy == 1 else f"{busy} threads are still running code"
            logger.warning("%s. The server is stopping without waiting for them.", threads)
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = 0
        self._jobs = SimpleQueue()

    def _run(self, future: asyncio.Future[Any], owner: str, run: Callable[[], Any]) -> None:
        """Run a job, unless the caller has left. The slot and the result are set in one wakeup of the event loop."""
        done = (None, None) if future.cancelled() else outcome_of(run)
        with suppress(RuntimeError):  # the loop is closed, so no call waits for a slot
            future.get_loop().call_soon_threadsafe(self._settle, future, owner, *done)

    def _settle(self, future: asyncio.Future[Any], owner: str, result: Any, exception: BaseException | None) -> None:
        self.places.leave(owner)
        if future.done():
            return
        if exception is None:
            future.set_result(result)
        else:
            future.set_exception(exception)


def work(jobs: Jobs) -> None:
    """Run jobs in this thread until None arrives."""
    while (job := jobs.get()) is not None:
        job()
        del job  # an idle thread must not keep the last call alive


def _with_context(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return partial(contextvars.copy_context().run, run_carried, function, *args)


def run_carried(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a worker thread and convert errors that a future can't carry.

    Raises:
        RuntimeError: The function raised such an error. Otherwise, the call would never end, or would be closed.
    """
    try:
        return function(*args)
    except (StopIteration, GeneratorExit) as exc:
        raise RuntimeError(f"the function raised {type(exc).__name__}") from exc
