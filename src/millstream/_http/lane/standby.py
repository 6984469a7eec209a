"""Starts calls on Python 3.11: one that waits for nothing runs at once, in a task that stands by for the next.

User code needs a task (`asyncio.timeout`, `TaskGroup`, `current_task`), and before eager tasks each new one cost its
registration and a turn of the loop. So one task stands by: it waits, on a `Standby`, by the protocol by which tasks
wait for futures (`_asyncio_future_blocking`, `_loop`, `add_done_callback`, `result`, `cancel`). Whoever starts a call
enters the task, as event loops do, and runs the call until it first waits for something. Most are over by then.

A task is an identity, so no two calls can tell that they had the same. It serves another call only if the last one was
over at once and neither asked anything of the task, nor told it anything, nor left a reference to it anywhere. In every
other case it belongs to that call and ends with it. Each call has a context of its own.
See docs/decisions/0003-a-task-for-each-call.md.
"""

import asyncio
from asyncio.tasks import _enter_task, _leave_task  # pyright: ignore[reportPrivateUsage]  documented for event loops
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from sys import getrefcount
from types import coroutine
from typing import Any, cast
from weakref import getweakrefcount

_Task = cast("type[asyncio.Task[None]]", asyncio.Task)
_OVER: Any = object()
_REFERENCES = 4
"""To a task that nobody has kept: its `Standby`, what wakes it, the variable that is looked at, and the look itself."""
_WEAK_REFERENCES = 1
"""The one of `asyncio.all_tasks`."""
_MAX_PAUSE = 8
"""Where every call waits, one in 2 ** 8 finds that out again."""


class Starter:
    """Starts the calls of one server."""

    __slots__ = ("_loop", "_pause", "_standby", "_taken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._standby: Standby | None = None
        self._taken = 0
        """How often in a row the task that stood by was kept by the first call it got."""
        self._pause = 0
        """Calls to start in tasks of their own before another task stands by: most may be of the kind that waits."""

    def start(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Start a call. None: it's over; else the task that goes on with it."""
        standby, loop = self._standby, self._loop
        if standby is None and self._pause:
            self._pause -= 1
            return _Task(call, loop=loop)
        if standby is None or standby.touched or not standby.ready:
            self._stand_by()
            return _Task(call, loop=loop)
        task = standby.task
        try:
            _enter_task(loop, task)
        except RuntimeError:  # a task runs, and none can be entered within another; the error's text names both
            standby.touched = False
            return _Task(call, loop=loop)
        context, step, pending = copy_context(), call.__await__(), _OVER
        standby.driven = True
        try:
            pending = context.run(next, step, _OVER)
        except BaseException as exc:
            # Without this frame, which refers to the task: the task refers to the error.
            standby.failure = exc.with_traceback(None if exc.__traceback__ is None else exc.__traceback__.tb_next)
            standby.touched = True
        standby.driven = False
        _leave_task(loop, task)
        if (
            pending is _OVER
            and not standby.touched
            and getrefcount(task) == _REFERENCES
            and getweakrefcount(task) == _WEAK_REFERENCES
        ):
            self._taken = 0
            return None
        self._taken += 1
        self._pause = 1 << min(self._taken, _MAX_PAUSE)
        self._standby = None
        standby.go_on(context, step, pending)
        return None if pending is _OVER else task

    def rest(self) -> None:
        """End the task that stands by: there is nobody left to serve."""
        standby, self._standby = self._standby, None
        if standby is not None and not standby.over:
            standby.task.cancel()

    def _stand_by(self) -> None:
        """See to it that from the loop's next turn on a task stands by."""
        standby = self._standby
        if standby is not None and (standby.touched or standby.over):
            self.rest()
        if self._standby is None:
            self._standby = Standby(self._loop)


class StandbyTask(asyncio.Task[None]):
    """A task that notes when anything is asked of it."""

    __slots__ = ("standby",)

    def __init__(self, standby: "Standby", loop: asyncio.AbstractEventLoop) -> None:
        _link(self, standby)
        super().__init__(cast("Coroutine[Any, Any, None]", standby.work()), loop=loop)

    def __getattribute__(self, name: str) -> Any:
        _linked(self).touched = True
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        _linked(self).touched = True
        super().__setattr__(name, value)


_slot: Any = StandbyTask.__dict__["standby"]
_link: Callable[[StandbyTask, "Standby"], None] = _slot.__set__
_linked: Callable[[StandbyTask], "Standby"] = _slot.__get__


class Standby:
    """What a task waits for that stands by."""

    __slots__ = (
        "_asyncio_future_blocking", "_context", "_loop", "_next", "_wakeup", "driven", "failure", "over", "ready",
        "task", "touched",
    )  # fmt: skip

    task: StandbyTask
    _wakeup: Callable[["Standby"], None]
    """Takes the task's next step; to be run in `_context`, the task's own."""
    _context: Context

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = True
        self._loop = loop
        self._next: tuple[Context, Any, Any] | None = None
        """The call that the task goes on with: its context, its coroutine, and what it waits for."""
        self.failure: BaseException | None = None
        """What a call has ended with, for the task to raise."""
        self.driven = False
        """A call runs in the task, driven from outside."""
        self.ready = False
        """The task waits for calls."""
        self.over = False
        """The task waits for no call any more."""
        self.touched = False
        """Something was asked of the task, so it serves no further call."""
        self.task = StandbyTask(self, loop)

    def go_on(self, context: Context, step: Any, pending: Any) -> None:
        """Let the task end, or go on with a call where it stands."""
        if pending is not _OVER:
            self._next = (context, step, pending)
        self._context.run(self._wakeup, self)

    @coroutine
    def work(self) -> Generator[Any, Any, None]:
        """The task's coroutine. A generator, because it yields what others wait for."""
        try:
            yield self
        except asyncio.CancelledError as exc:
            if self._next is None and self.failure is None:
                raise
            # The call cancelled itself while it was driven. The task has to know it again, and to count it once.
            self.task.cancel(*exc.args)
            self.task.uncancel()
        finally:
            self.ready, self.over = False, True
            del self.task, self._wakeup
        if self.failure is not None:
            try:
                raise self.failure
            finally:
                self.failure = None  # its traceback refers to this frame
        if self._next is not None:
            (context, step, pending), self._next = self._next, None
            while pending is not _OVER:
                thrown = None
                try:
                    yield pending
                except BaseException as exc:
                    thrown = exc
                # Out here: in a call, no error of another is being handled.
                try:
                    pending = context.run(next, step, _OVER) if thrown is None else context.run(step.throw, thrown)
                except StopIteration:
                    return
                finally:
                    del thrown  # its traceback refers to this frame

    # What a task asks of the future it waits for.

    def add_done_callback(self, wakeup: Callable[["Standby"], None], *, context: Context) -> None:
        """The task stands by: keep what wakes it."""
        self._wakeup = wakeup
        self._context = context
        self.ready = True

    def result(self) -> None:
        """Asked when the task is woken."""

    def cancel(self, msg: Any = None) -> bool:
        """The task is cancelled, by the call that is driven or while it stands by. It remembers that itself."""
        if self.ready and not self.driven:
            self.ready = False
            self._loop.call_soon(self._wakeup, self, context=self._context)
        return False
