"""Deduplication of concurrent calls with the same key, per event loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

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
        if not task.cancelled():
            task.exception()  # prevents a warning when no caller is left
