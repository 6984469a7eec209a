"""Tasks that end with their owner, and work in a thread of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
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

    async def close(self) -> None:
        """Cancel all tasks and wait for them to end."""
        self._closed = True
        await cancel_all(*self._tasks)


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
