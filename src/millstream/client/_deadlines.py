"""Timeouts of requests, all served by one timer.

Nearly all requests finish long before their timeout, so most individual timers would be set up just to be canceled.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

Report = Callable[[float, float | None, str | None], Awaitable[None] | None]
"""Progress callback: ``report(progress, total, message)``."""


class Deadlines:
    """Pending requests of one client, and the timer that times them out."""

    def __init__(self) -> None:
        """Start without pending requests."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        """When the timer fires, at the latest at the first deadline."""
        self._waiting: set[PendingRequest] = set()

    def begin(self, seconds: float, longest: float, progress: Report | None) -> "PendingRequest":
        """Start the clock of a request in the current task. Call `PendingRequest.end` when the request finishes.

        Args:
            seconds: Timeout without a response; `math.inf` for none.
            longest: Maximum seconds in total, even with progress.
            progress: Called with each progress report.
        """
        loop = self._loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        pending = PendingRequest(self, now + seconds, seconds, now + max(longest, seconds), progress)
        self._waiting.add(pending)
        self.wake_at(pending.when)
        return pending

    def discard(self, pending: "PendingRequest") -> None:
        """Remove a request."""
        self._waiting.discard(pending)

    def wake_at(self, when: float) -> None:
        """Check for expired requests at `when`, or earlier."""
        if when >= self._wakes_at:
            return
        if self._handle is not None:
            self._handle.cancel()
        assert self._loop is not None  # noqa: S101  set in `begin`
        self._wakes_at = when
        self._handle = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        assert self._loop is not None  # noqa: S101  it calls this
        self._handle, self._wakes_at = None, math.inf
        now, soonest = self._loop.time(), math.inf
        for pending in list(self._waiting):
            if pending.when <= now:
                pending.expire()
            else:
                soonest = min(soonest, pending.when)
        if soonest != math.inf:
            self.wake_at(soonest)

    def close(self) -> None:
        """Stop the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self._wakes_at = None, math.inf


class PendingRequest:
    """A request waiting for its response: its timeout and progress callback."""

    __slots__ = (
        "_cancel_requests",
        "_expired",
        "_holds",
        "_latest",
        "_owner",
        "_seconds",
        "_task",
        "progress",
        "when",
    )

    def __init__(self, owner: Deadlines, when: float, seconds: float, latest: float, progress: Report | None) -> None:
        """Created by `Deadlines.begin`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  requests are sent in tasks
        self._owner = owner
        self._task = task
        self._cancel_requests = task.cancelling()
        self._expired = False
        self._seconds = seconds
        self._holds = 0
        """Questions of the server that the client hasn't answered yet."""
        self._latest = latest
        """Final deadline, in the loop's time, regardless of progress."""
        self.when: float = when
        """Deadline unless there's progress."""
        self.progress: Report | None = progress

    def extend(self, now: float) -> None:
        """Restart the clock after progress."""
        if self._latest != math.inf and not self._holds and not self._expired:
            self.when = min(now + self._seconds, self._latest)
            self._owner.wake_at(self.when)

    def hold(self) -> None:
        """Pause the clock while the server waits for an answer from us."""
        self._holds += 1
        if self._latest != math.inf and not self._expired:
            self.when = self._latest

    def release(self, now: float) -> None:
        """Record that one question was answered; the clock restarts after the last one."""
        self._holds -= 1
        self.extend(now)

    def expire(self) -> None:
        """Cancel the request's task; `end` then reports the timeout."""
        self._owner.discard(self)
        self._expired = True
        self._task.cancel()

    def end(self) -> bool:
        """Stop the clock. Return whether the `CancelledError` that was just raised means a timeout."""
        self._owner.discard(self)
        if not self._expired:
            return False
        self._expired = False
        return self._task.uncancel() <= self._cancel_requests
