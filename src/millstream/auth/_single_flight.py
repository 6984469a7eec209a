"""One piece of work for all who wait for the same thing. A server may answer in several loops: each has its own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """What is under way now."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def runs(self, key: str) -> bool:
        """Whether somebody here waits for this already."""
        return (asyncio.get_running_loop(), key) in self._tasks

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the work gives, begun unless it's under way. A caller may give up; the work goes on for the others."""
        loop = asyncio.get_running_loop()
        task = self._tasks.get((loop, key))
        if task is None:
            task = self._tasks[loop, key] = loop.create_task(work())
            task.add_done_callback(lambda done: self._settle(loop, key, done))
        return await asyncio.shield(task)

    def _settle(self, loop: asyncio.AbstractEventLoop, key: str, task: "asyncio.Task[T]") -> None:
        del self._tasks[loop, key]
        if not task.cancelled():
            task.exception()  # it is for those who wait, and there may be nobody left
