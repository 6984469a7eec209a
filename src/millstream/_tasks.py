"""Tasks that end with their owner, work in a thread of its own, and the delay between attempts.

Delays grow and vary, so that a failing server isn't flooded, and its clients don't all return at once.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from random import uniform
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Owns the tasks of one object, and cancels the remaining ones in `close`."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that runs until it ends or the owner closes. It must handle its own errors."""
        task = asyncio.get_running_loop().create_task(work)
        if self._closed:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def settle(self, seconds: float | None) -> None:
        """Wait up to `seconds` for running tasks to finish, or without a limit."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def close(self, seconds: float | None = None) -> None:
        """Cancel all tasks, and wait up to `seconds` for them to end, or without a limit."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await self.settle(seconds)
        for task in tasks:
            has_failed(task)


def has_failed(task: asyncio.Future[Any]) -> bool:
    """Return whether a task ended without a result. Its error counts as retrieved, so asyncio doesn't log it."""
    return task.done() and (task.cancelled() or task.exception() is not None)


async def cancel_all(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks and wait for them to end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def run_in_thread(work: Callable[[], T], name: str) -> T:
    """Return the result of `work` in a daemon thread, which can't be canceled, but doesn't delay the program's end.

    Raises:
        OSError: `work` raised it, or a ValueError.
    """
    future = Future[T]()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except (OSError, ValueError) as exc:
            future.set_exception(exc)

    Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


def retry_delay(attempt: int, first: float, most: float, *, jitter: float = 0.25) -> float:
    """Return the seconds before the next attempt. They double each time, up to a maximum.

    Args:
        attempt: Number of delays before this one.
        first: The first delay.
        most: Maximum delay.
        jitter: Part of the delay that is random, from 0 to 1.
    """
    return min(first * 2.0 ** min(attempt, 99), most) * uniform(1 - jitter, 1)  # noqa: S311  no secret
