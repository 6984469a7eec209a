"""The periodic task of a server, which checks its running calls.

It keeps streams alive, turns silent calls into streams, ends calls over the time limit, and reports progress of silent
calls.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from millstream._server.calls.call import Call, CallProgress
from millstream._server.calls.context import nudge_progress
from millstream._server.dispatch import Dispatcher
from millstream._tasks import Tasks, cancel_all
from millstream._troubles import LogOnce

logger = logging.getLogger("millstream")

TICK = 1.0
STALL = 1.0
"""Minimum delay of a tick that causes a warning, in seconds. The warning appears at most once every `QUIET` seconds."""
QUIET = 60.0
SILENCE = 5.0
"""Seconds of silence after which a call is answered as an event stream, if the caller accepts one."""


class Sweep:
    """A task that checks the running calls once per tick, from `open` to `close`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        """Create the task. It runs from `open` on."""
        self._dispatcher = dispatcher
        self.beats: list[Callable[[], None]] = []
        """Functions called at every heartbeat."""
        self.ticks: list[Callable[[float], None]] = []
        """Functions called with the time at the end of each tick."""
        self.clock: Callable[[], float] = time.monotonic
        self.started: float = self.clock()
        self.lag: float = 0.0
        """Delay of the last tick in seconds. Every call waits this long."""
        self._last_warning: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._jobs = Tasks()
        self._failures: dict[Callable[..., object], type[Exception]] = {}
        """Parts of the work that failed the last time, each with the type of its error, which is logged once."""
        self._trouble = LogOnce(
            None,  # the call may end before the next attempt
            "Call streams can't be extended in the store; retrying",
            "Call streams can be extended in the store again.",
        )

    def open(self) -> None:
        """Start the background task that sweeps."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the task and all background work."""
        task, self._task = self._task, None
        await cancel_all(task)
        await self._jobs.close()

    async def _run(self) -> None:
        services = self._dispatcher.services
        started = beat = self.clock()
        while True:
            asked = self.clock()
            await asyncio.sleep(TICK)
            now = self.clock()
            self.lag = max(0.0, now - asked - TICK)
            if asked - started > TICK / 2:  # in the first tick, the server itself loads modules
                self._attempt(self.report_stall, now)
            self.look_at_calls(now)
            if now - beat >= services.settings.heartbeat:
                beat = now
                for each in self.beats:
                    self._attempt(each)
                self._attempt(self.report_progress)
            self.tick(now)

    def tick(self, now: float) -> None:
        """Do the periodic work of one tick."""
        for each in self.ticks:
            self._attempt(each, now)

    def report_stall(self, now: float) -> None:
        """Warn that a function blocked the event loop."""
        if self.lag < STALL or (self._last_warning is not None and now - self._last_warning < QUIET):
            return
        self._last_warning = now
        names = sorted({call.name for call in self._dispatcher.calls if call.name})
        logger.warning(
            "The event loop was blocked for %.1f seconds%s. If an `async def` function calls blocking code, "
            "such as time.sleep or requests, make it a `def` function, which runs in a thread.",
            self.lag,
            f" (calls: {', '.join(names)})" if names else "",
        )

    def run_in_background(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Run work that can wait for a peer or the store in the background, unless it's still running."""
        self._jobs.spawn_once(self._run_job, work, *arguments)

    async def _run_job(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        try:
            with self._trouble:
                await work(*arguments)
        except Exception:
            logger.exception("A periodic task failed; retrying.")

    def look_at_calls(self, now: float) -> None:
        """End calls over the time limit and turn silent ones into streams."""
        for call in list(self._dispatcher.calls):
            self._attempt(self._look_at, call, now)

    def _look_at(self, call: Call, now: float) -> None:
        if not call.started:
            call.started = now
        elif now - call.started > self._dispatcher.services.settings.max_call_seconds and not call.long_lived:
            call.expire()
        elif now - call.started >= SILENCE and call.reply_channel is None:
            self.run_in_background(call.open_reply_channel().keep_alive)

    def report_progress(self) -> None:
        """Report progress for calls that were silent since the last beat, if their callers want progress."""
        for call in list(self._dispatcher.calls):
            if call.token is None:
                continue
            reported = call.progress = call.progress or CallProgress()
            if call.reply_channel is not None and reported.last_reported == reported.reported_at_heartbeat:
                self.run_in_background(nudge_progress, call)
            reported.reported_at_heartbeat = reported.last_reported

    def _attempt(self, work: Callable[..., object], *args: object) -> None:
        """Run a part of the work. A failure affects neither the other parts nor the next tick."""
        try:
            work(*args)
        except Exception as exc:
            if self._failures.get(work) is not type(exc):
                logger.exception("A periodic task failed; retrying.")
            self._failures[work] = type(exc)
        else:
            if self._failures:
                self._failures.pop(work, None)
