"""Tasks that end with their owner or serve several callers, work in its own thread, and delays between attempts.

Delays grow and vary, so that a failing server isn't flooded and its clients don't all retry at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from random import uniform
from threading import Lock, Thread
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from millstream._copies import NotCopyable

T = TypeVar("T")
P = ParamSpec("P")
_LOOK_SECONDS = 0.3
"""Seconds between two looks at a file."""


def make_blocking(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """Return a method with the same arguments and docstring that waits for this method of `_inner`."""
    return _wait_with("_wait", method)


def make_asking(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """Return a method like those of `make_blocking`, for a method that waits for a person."""
    return _wait_with("_ask", method)


def _wait_with(attribute: str, method: Callable[..., Any]) -> Callable[..., Any]:
    name = method.__name__

    @wraps(method)
    def wait(self: Any, /, *args: Any, **options: Any) -> Any:
        return getattr(self, attribute)(getattr(self._inner, name)(*args, **options))

    return wait


class LoopThread:
    """An event loop in a daemon thread, for objects that block: ``print(loop.wait(client.ping()))``."""

    def __init__(self, name: str, error: Callable[[], Exception]) -> None:
        """Name the thread, and the error of `wait` while the loop doesn't run."""
        self._name = name
        self._error = error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread()
        self._lock = Lock()
        """Held while work is scheduled, so that `stop` cancels all of it."""

    def start(self) -> None:
        """Start the loop, unless it runs."""
        if self._loop is None:
            runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop = runner.get_loop()
            self._thread = Thread(target=_run, args=(runner,), name=self._name, daemon=True)
            self._thread.start()

    def wait(self, needed: Awaitable[T]) -> T:
        """Return the result. If Ctrl-C interrupts the wait, the work is canceled."""

        async def result() -> T:
            return await needed

        with self._lock:
            future = None if self._loop is None else asyncio.run_coroutine_threadsafe(result(), self._loop)
        if future is None:
            if isinstance(needed, Coroutine):
                needed.close()
            raise self._error()
        try:
            return future.result()
        finally:
            future.cancel()

    def call(self, work: Callable[[], object]) -> None:
        """Call a function in the loop soon, if the loop runs."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # another thread has just stopped it
                loop.call_soon_threadsafe(work)

    def stop(self) -> None:
        """Cancel what's running in the loop, and wait for its end."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()


def _run(runner: asyncio.Runner) -> None:
    with runner:
        runner.get_loop().run_forever()


class Tasks(NotCopyable):
    """Owns an object's tasks: ``tasks.spawn(refresh())``. `close` cancels the tasks that are still running."""

    def __init__(self) -> None:
        self._tasks = set[asyncio.Task[Any]]()
        self._single = WeakValueDictionary[object, asyncio.Task[object]]()
        """Function and arguments of `spawn_once` -> its task, as long as it runs."""
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that runs until it ends or the owner closes.

        Args:
            work: The coroutine. It must handle its own errors.
        """
        task = asyncio.get_running_loop().create_task(work)
        if self._closed:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn_once(self, work: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> None:
        """Start a task, unless the one for this function and these arguments is still running.

        Args:
            work: The function, which must handle its own errors.
            arguments: Its arguments.
        """
        key = (work, *arguments)
        task = self._single.get(key)
        if task is None or task.done():
            self._single[key] = self.spawn(work(*arguments))

    def __len__(self) -> int:
        return len(self._tasks)

    async def settle(self, seconds: float | None) -> None:
        """Wait for running tasks to finish.

        Args:
            seconds: Maximum time to wait, or None for no limit.
        """
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def reopen(self) -> None:
        """Let new tasks run after `close`."""
        self._closed = False

    async def close(self, seconds: float | None = None) -> None:
        """Cancel all tasks and wait for them to end.

        Args:
            seconds: Maximum time to wait, or None for no limit.
        """
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await self.settle(seconds)
        for task in tasks:
            has_failed(task)


def has_failed(task: asyncio.Future[Any]) -> bool:
    """Return whether a task ended without a result: ``task.add_done_callback(has_failed)``.

    Its error is treated as retrieved, so asyncio doesn't log it.

    Args:
        task: The task, which may still be running.
    """
    return task.done() and (task.cancelled() or task.exception() is not None)


def is_canceled() -> bool:
    """Return whether this task was canceled, even if a library swallowed that: ``while not is_canceled(): ...``.

    On Python 3.11, `asyncio.wait_for` returns a result that arrives at the same time instead of raising the
    cancellation.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def cancel_all(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks and wait for them to end: ``await cancel_all(self._reader, self._writer)``.

    Args:
        tasks: The tasks, or None for tasks that were never started.
    """
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def watch(look: Callable[[], T], known: T) -> AsyncIterator[T]:
    """Yield what `look` returns whenever it has changed and has stopped changing:
    ``async for stamp in watch(lambda: stamp_of(path), stamp_of(path))``.

    It polls, which also works on network disks and needs no library.

    Args:
        look: Called in a thread.
        known: What it has returned before.
    """
    before = known
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = await asyncio.to_thread(look)
        if now == before != known:
            known = now
            yield now
        before = now


def outcome_of(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """Return the result of `work`, or its error. The error's traceback doesn't refer to the caller's frame."""
    try:
        return work(), None
    except BaseException as exc:  # the waiting callers handle every error
        return None, exc


def fulfill(future: Future[Any], work: Callable[[], Any]) -> None:
    """Set the result of `work`, or its error. A future that was canceled before the work began stays canceled."""
    if not (future.running() or future.set_running_or_notify_cancel()):
        return
    result, error = outcome_of(work)
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


async def run_in_thread(work: Callable[[], T], name: str) -> T:
    """Return the result of `work` in a daemon thread, which can't be canceled, but doesn't delay the program's end.

    Raises:
        BaseException: `work` raised it.
    """
    future = Future[T]()
    future.set_running_or_notify_cancel()  # from here on, it can't be canceled
    Thread(target=fulfill, args=(future, work), name=name, daemon=True).start()
    return await asyncio.wrap_future(future)


class SingleFlight(Generic[T]):
    """Work in progress by key, which several callers await: ``await SingleFlight[Tokens]().run(user, renew)``."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def runs(self, key: str) -> bool:
        """Return whether the work for a key is running in this event loop.

        Args:
            key: Identifies the work.
        """
        return (asyncio.get_running_loop(), key) in self._tasks

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the work for a key, which is started unless it's running.

        Canceling one caller doesn't cancel the work for other callers.

        Args:
            key: Identifies the work.
            work: Starts the work.

        Raises:
            Exception: The work failed. Each of its callers gets the same exception.
        """
        loop = asyncio.get_running_loop()
        task = self._tasks.get((loop, key))
        if task is None:
            task = self._tasks[loop, key] = loop.create_task(work())
            task.add_done_callback(lambda done: self._settle(loop, key, done))
        return await asyncio.shield(task)

    async def cancel(self, key: str) -> None:
        """Cancel the work for a key, and wait until it has ended.

        Args:
            key: Identifies the work.
        """
        task = self._tasks.get((asyncio.get_running_loop(), key))
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def settle(self) -> None:
        """Wait until no work is running."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def _settle(self, loop: asyncio.AbstractEventLoop, key: str, task: asyncio.Task[T]) -> None:
        del self._tasks[loop, key]
        has_failed(task)  # otherwise, asyncio logs an error if no caller is left


def retry_delay(attempt: int, first: float, most: float, *, jitter: float = 0.25) -> float:
    """Return the seconds before the next attempt: ``await asyncio.sleep(retry_delay(attempt, 0.5, 60))``.

    They double each time, up to a maximum.

    Args:
        attempt: Number of delays before this one.
        first: The first delay.
        most: Maximum delay.
        jitter: Part of the delay that is random, from 0 to 1.
    """
    return min(first * 2.0 ** min(attempt, 99), most) * uniform(1 - jitter, 1)  # noqa: S311  no secret


class CancelReason(str):
    """The peer's reason for a cancellation: ``task.cancel(CancelReason("The user closed the window."))``.

    As the message of the `CancelledError`, it reaches the code that cancels what the task is waiting for. Its type
    distinguishes it from messages of libraries that also cancel tasks.
    """

    __slots__ = ()


def cancel_reason(error: BaseException) -> str:
    """Return the peer's reason for a `CancelledError`, or an empty string if it gave none."""
    found: object = error.args[0] if error.args else ""
    return str(found) if isinstance(found, CancelReason) else ""
