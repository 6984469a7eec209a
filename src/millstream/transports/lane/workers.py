"""Tasks that run one call after another, woken without a turn of the event loop (Python 3.11).

User code needs a real task (`asyncio.timeout`, `TaskGroup`), and on 3.11 each new task costs its registration and a
turn of the loop before it starts. A worker is a task that waits, on itself, for its next call: it follows the protocol
by which tasks wait for futures (`_asyncio_future_blocking`, `_loop`, `add_done_callback`, `result`), so that whoever
has a call can take the step at once. From 3.12 on there are eager tasks, and no workers.
See docs/decisions/0003-workers.md.

A worker that was cancelled, or whose context variables a call has changed, is not used again: calls share nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import coroutine
from typing import Any, cast

Run = Callable[[Any], Coroutine[Any, Any, None]]

MAX_IDLE = 256
"""Workers that wait; more end after their call."""


class Workers:
    """The idle workers of one server."""

    __slots__ = ("idle",)

    def __init__(self) -> None:
        self.idle: list[Worker] = []


class Worker:
    """One task, and the awaitable on which it waits between calls."""

    __slots__ = (
        "_asyncio_future_blocking",
        "_cancelled",
        "_loop",
        "_workers",
        "call",
        "context",
        "run",
        "task",
        "wakeup",
    )

    wakeup: Callable[["Worker"], None]
    """Takes the task's next step; to be run in `context`."""
    context: Context

    def __init__(self, workers: Workers, loop: asyncio.AbstractEventLoop, run: Run, call: Any) -> None:
        self._asyncio_future_blocking = False
        self._workers = workers
        self._loop = loop
        self.run: Run | None = run
        self.call = call
        self._cancelled = False
        self.task: asyncio.Task[None] = asyncio.Task(cast("Coroutine[Any, Any, None]", self._work()), loop=loop)

    @coroutine
    def _work(self) -> Generator[Any, None, None]:
        # A generator, because it can yield itself to its task without another Python call.
        idle = self._workers.idle
        task = self.task
        untouched = copy_context()
        while True:
            yield from self.run(self.call)  # type: ignore[misc]  # whoever wakes it has set both
            self.run = self.call = None  # an idle worker keeps no connection alive
            if task.cancelling() or len(idle) >= MAX_IDLE or copy_context() != untouched:
                return
            idle.append(self)
            self._asyncio_future_blocking = True
            yield self

    def wake_soon(self) -> None:
        """Take the call in the next turn of the loop: no task can be entered while another runs.

        That is all for which waking raises RuntimeError; a task keeps what its coroutine raises.
        """
        self._loop.call_soon(self.wakeup, self, context=self.context)

    # What a task asks of the future it waits for.

    def add_done_callback(self, wakeup: Callable[["Worker"], None], *, context: Context) -> None:
        """The task waits: keep what wakes it."""
        self.wakeup = wakeup
        self.context = context

    def result(self) -> None:
        """Asked when the task is woken."""
        if self._cancelled:
            raise asyncio.CancelledError

    def cancel(self, msg: Any = None) -> bool:
        """The idle task is cancelled: the loop is closing."""
        self._cancelled = True
        if self in self._workers.idle:
            self._workers.idle.remove(self)
        self._loop.call_soon(self.wakeup, self, context=self.context)
        return True
