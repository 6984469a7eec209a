"""Deduplication of concurrent calls with the same key, per event loop.

A semaphore for each key. Waits are fair and bounded, so an unresponsive issuer can't block every caller.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from millstream._tasks import has_failed
from millstream.auth._method import Unavailable

PATIENCE = 10.0
"""Maximum seconds that a caller waits."""


class KeyedSemaphore:
    """Semaphores by key, created on demand and dropped when unused. For one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._keys = WeakValueDictionary[str, asyncio.Semaphore]()
        """Semaphores in use, by key."""

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None]:
        """Hold the semaphore of `key` inside the block.

        Raises:
            Unavailable: It wasn't free within `PATIENCE` seconds.
        """
        semaphore = self._keys.setdefault(key, asyncio.Semaphore(self._at_once))
        try:
            async with asyncio.timeout(PATIENCE):
                await semaphore.acquire()
        except TimeoutError:
            raise Unavailable("Too many sign-ins from your address at once. Try again later.") from None
        try:
            yield
        finally:
            semaphore.release()


T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Calls in progress, by key."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def runs(self, key: str) -> bool:
        """Return whether a call with this key is running in this event loop."""
        return (asyncio.get_running_loop(), key) in self._tasks

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `work`, started only if none is running for the key. Canceling one caller doesn't cancel
        the work for the others.
        """
        loop = asyncio.get_running_loop()
        task = self._tasks.get((loop, key))
        if task is None:
            task = self._tasks[loop, key] = loop.create_task(work())
            task.add_done_callback(lambda done: self._settle(loop, key, done))
        return await asyncio.shield(task)

    def _settle(self, loop: asyncio.AbstractEventLoop, key: str, task: "asyncio.Task[T]") -> None:
        del self._tasks[loop, key]
        has_failed(task)  # otherwise, asyncio logs an error if no caller is left
