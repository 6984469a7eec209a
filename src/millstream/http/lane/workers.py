"""Tasks that run one call after another, entered without a turn of the event loop (Python 3.11).

User code needs a real task (`asyncio.timeout`, `TaskGroup`), and on 3.11 each new task costs its registration and a
turn of the loop before it starts. A worker is a task that waits, on itself, for its next call: it follows the protocol
by which tasks wait for futures (`_asyncio_future_blocking`, `_loop`, `add_done_callback`, `result`). Whoever has a call
enters the task, as event loops do (`asyncio.tasks._enter_task`), and drives the call to its first suspension. Most end
before that; the task takes over the others where they stand. From 3.12 on there are eager tasks, and no workers.
See docs/decisions/0003-workers.md.

A worker that was cancelled, or whose context variables a call has changed, is not used again: calls share nothing.
"""

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # pyright: ignore[reportPrivateUsage]  documented for event loops
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any, cast

MAX_IDLE = 256
"""Workers that wait; more end after their call."""

_OVER = object()
_NOT_BEGUN = object()
_NOTHING: Any = ()


class Workers:
    """The idle workers of one server."""

    __slots__ = ("idle",)

    def __init__(self) -> None:
        self.idle: list[Worker] = []


class Worker:
    """One task, and the awaitable on which it waits between calls."""

    __slots__ = (
        "_asyncio_future_blocking", "_cancelled", "_clean", "_context", "_loop", "_pending", "_step", "_stop",
        "_wakeup", "_workers", "task",
    )  # fmt: skip

    _wakeup: Callable[["Worker"], None]
    """Takes the task's next step; to be run in its context."""
    _context: Context
    _clean: Context
    """What the context was before any call."""

    def __init__(self, workers: Workers, loop: asyncio.AbstractEventLoop, first: Coroutine[Any, Any, None]) -> None:
        self._asyncio_future_blocking = False
        self._workers = workers
        self._loop = loop
        self._step: Any = first
        """The call that the task takes over, and with `_pending` where it stands: what it waits for."""
        self._pending: Any = _NOT_BEGUN
        self._stop = False
        """The call that is driven has cancelled its task."""
        self._cancelled = False
        self.task: asyncio.Task[None] = asyncio.Task(cast("Coroutine[Any, Any, None]", self._work()), loop=loop)

    def drive(self, call: Coroutine[Any, Any, None]) -> bool:
        """Run a call in this worker, just taken from the idle ones; False when it is not over yet.

        At once, unless another task runs: no task can be entered within another.
        """
        step, task, loop = call.__await__(), self.task, self._loop
        try:
            _enter_task(loop, task)
        except RuntimeError:
            self._hand_over(step, _NOT_BEGUN)
            return False
        try:
            pending = self._context.run(next, step, _OVER)
        except BaseException as exc:
            _leave_task(loop, task)
            self._hand_over(None, None)
            if isinstance(exc, asyncio.CancelledError):
                return True
            raise
        _leave_task(loop, task)
        if pending is not _OVER:
            self._hand_over(step, pending)
            return False
        if self._stop or task.cancelling() or self._context != self._clean:
            self._hand_over(None, None)
        else:
            self._workers.idle.append(self)
        return True

    def _hand_over(self, step: Any, pending: Any) -> None:
        """Let the task go on with a call where it stands; without one it ends."""
        self._step, self._pending = step, pending
        try:
            self._context.run(self._wakeup, self)
        except RuntimeError:
            # All for which waking raises it is another task that runs; a task keeps what its coroutine raises.
            self._loop.call_soon(self._wakeup, self, context=self._context)

    @coroutine
    def _work(self) -> Generator[Any, Any, None]:
        # A generator, because it can yield itself to its task.
        idle, task = self._workers.idle, self.task
        self._clean = copy_context()
        while self._step is not None:
            step, pending = self._step, self._pending
            self._step = self._pending = None
            while pending is not _NOT_BEGUN:
                try:
                    self._heed_stop(pending)
                    yield pending
                except BaseException as exc:
                    try:
                        pending = step.throw(exc)
                    except StopIteration:
                        step, pending = _NOTHING, _NOT_BEGUN
                else:
                    pending = _NOT_BEGUN
            yield from step
            step = None  # an idle worker keeps no connection alive
            if task.cancelling() or len(idle) >= MAX_IDLE or copy_context() != self._clean:
                return
            idle.append(self)
            self._asyncio_future_blocking = True
            yield self

    def _heed_stop(self, pending: Any) -> None:
        """A task that was cancelled while it ran is so at its first suspension.

        Raises:
            CancelledError: what it waits for cannot be cancelled instead.
        """
        if self._stop:
            self._stop = False
            if pending is None or not pending.cancel():
                raise asyncio.CancelledError

    # What a task asks of the future it waits for.

    def add_done_callback(self, wakeup: Callable[["Worker"], None], *, context: Context) -> None:
        """The task waits: keep what wakes it."""
        self._wakeup = wakeup
        self._context = context

    def result(self) -> None:
        """Asked when the task is woken."""
        if self._cancelled:
            raise asyncio.CancelledError

    def cancel(self, msg: Any = None) -> bool:
        """The task is cancelled: by the call that is driven, or while it is idle because the loop closes."""
        if self in self._workers.idle:
            self._workers.idle.remove(self)
            self._cancelled = True
            self._loop.call_soon(self._wakeup, self, context=self._context)
        else:
            self._stop = True
        return True
