"""The events of one answer, read with ``async for``. The answer runs in its own task.

It waits for its reader, and stops when the loop ends, the reading task is canceled, or the object is deleted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

from millstream.agent._errors import AgentError
from millstream.agent._events import Event

Emit = Callable[[Event], Awaitable[None]]
_ROOM = 256
"""Maximum unread events."""


class AnswerQueue:
    """Runs the answers of one conversation, one after the other."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.stopping: bool = False
        """Whether the current answer is being stopped, because it has no reader."""
        self.emit: Emit | None = None
        """Receives events of the current answer."""

    async def begin(self, work: Callable[[], Coroutine[Any, Any, None]], emit: Emit) -> "asyncio.Task[None]":
        """Start an answer, once a stopped one has ended.

        Raises:
            AgentError: another answer is in progress.
        """
        while self.task is not None and not self.task.done():
            if not self.stopping:
                raise AgentError("The agent is still answering. Read that answer to its end first.")
            await asyncio.wait([self.task])
        self.stopping = False
        self.emit = emit
        self.task = asyncio.create_task(work())
        return self.task

    def stop(self, task: "asyncio.Task[None]") -> None:
        """Stop an answer without a reader."""
        if task is self.task:
            self.stopping = True
            self.emit = None
        task.cancel()


class Answer:
    """The events of one answer: ``async for event in agent.say("Hello"): print(event)``."""

    def __init__(self, line: AnswerQueue, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._line = line
        self._work = work
        self._waiting: asyncio.Queue[Event | None] = asyncio.Queue(_ROOM)
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            work, waiting = self._work, self._waiting  # the task must not keep this object alive
            self._task = await self._line.begin(lambda: _run_to_end(work, waiting), waiting.put)
        try:
            event = await self._waiting.get()
            if event is not None:
                return event
            self._over = True
            await self._task
        except BaseException:
            await self.aclose()
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop the answer if it's still running, and wait for its end."""
        self._over = True
        if self._task is not None:
            if not self._task.done():
                self._line.stop(self._task)
            await asyncio.gather(self._task, return_exceptions=True)

    def __del__(self) -> None:
        if self._task is not None and not self._task.done() and self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._line.stop, self._task)
            self._line.stopping = True


async def _run_to_end(work: Callable[[], Coroutine[Any, Any, None]], waiting: "asyncio.Queue[Event | None]") -> None:
    try:
        await work()
    finally:
        running = asyncio.current_task()
        if running is None or not running.cancelling():
            await waiting.put(None)
