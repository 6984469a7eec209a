"""Time limits of requests: one timer serves all requests of a client.

Nearly all requests end long before their limit, so a timer for each would be made and canceled for nothing.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

Report = Callable[[float, float | None, str | None], Awaitable[None] | None]
"""``report(progress, total, message)``."""


class Deadlines:
    """The requests of one client that wait, and the timer that ends them."""

    __slots__ = ("_handle", "_loop", "_waiting", "_wakes")

    def __init__(self) -> None:
        """No request waits yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._wakes = math.inf
        """When the timer fires: not later than the first deadline."""
        self._waiting: set[PendingRequest] = set()

    def begin(self, seconds: float, longest: float, progress: Report | None) -> "PendingRequest":
        """Start the clock of a request in the current task. Its end is `PendingRequest.end`.

        Args:
            seconds: until it ends without an answer; `math.inf` for never.
            longest: seconds until it ends even if it reports progress.
            progress: called with each progress report.
        """
        loop = self._loop = self._loop or asyncio.get_running_loop()
        now = loop.time()
        pending = PendingRequest(self, now + seconds, seconds, now + max(longest, seconds), progress)
        self._waiting.add(pending)
        self.wake_at(pending.when)
        return pending

    def discard(self, pending: "PendingRequest") -> None:
        """Forget a request."""
        self._waiting.discard(pending)

    def wake_at(self, when: float) -> None:
        """Look for expired requests no later than this."""
        if when >= self._wakes:
            return
        if self._handle is not None:
            self._handle.cancel()
        assert self._loop is not None  # noqa: S101  a request has begun
        self._wakes = when
        self._handle = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        assert self._loop is not None  # noqa: S101  it runs this
        self._handle, self._wakes = None, math.inf
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
            self._handle, self._wakes = None, math.inf


class PendingRequest:
    """A request that waits for its response: its time limit and its progress callback."""

    __slots__ = (
        "_cancelling", "_expired", "_holds", "_latest", "_owner", "_seconds", "_task", "progress", "when",
    )  # fmt: skip

    def __init__(self, owner: Deadlines, when: float, seconds: float, latest: float, progress: Report | None) -> None:
        """Made by `Deadlines.begin`."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  requests are sent in tasks
        self._owner = owner
        self._task = task
        self._cancelling = task.cancelling()
        self._expired = False
        self._seconds = seconds
        self._holds = 0
        """Questions of its server that have no answer yet."""
        self._latest = latest
        """When it ends, whatever happens; in the loop's time."""
        self.when: float = when
        """When it ends unless something comes."""
        self.progress: Report | None = progress

    def extend(self, now: float) -> None:
        """Something has come: the clock starts again."""
        if self._latest != math.inf and not self._holds and not self._expired:
            self.when = min(now + self._seconds, self._latest)
            self._owner.wake_at(self.when)

    def hold(self) -> None:
        """The server waits for us: the clock stands still."""
        self._holds += 1
        if self._latest != math.inf and not self._expired:
            self.when = self._latest

    def release(self, now: float) -> None:
        """The server has one more answer: after the last one, the clock starts again."""
        self._holds -= 1
        self.extend(now)

    def expire(self) -> None:
        """End it: its task gets a `CancelledError`, and `end` says why."""
        self._owner.discard(self)
        self._expired = True
        self._task.cancel()

    def end(self) -> bool:
        """Stop the clock. Return whether a `CancelledError` that just came means that the time was up."""
        self._owner.discard(self)
        if not self._expired:
            return False
        self._expired = False
        return self._task.uncancel() <= self._cancelling
