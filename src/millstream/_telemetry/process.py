"""Figures of the process and its event loop: CPU, memory, descriptors, tasks, and the delay of the loop.

Active sessions: those with a message in the last minutes.

A session is a sealed id that any worker verifies, so its end isn't known. It counts as over after `IDLE_SECONDS`
without a message. Its duration is the time from the first to the last message. The table is bounded: when it's full,
the oldest session counts as over.

Recent activity for live pages: calls in each of the last seconds, and the recent growth of counts.
"""

import asyncio
import gc
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, TypeVar

from millstream._telemetry.metrics import Labels, Metrics

IDLE_SECONDS = 300.0
MAX_SESSIONS = 10_000


class ActiveSessions:
    """The times of the first and last message of each session."""

    def __init__(self, ended: Callable[[Labels, float], None], *, max_sessions: int = MAX_SESSIONS) -> None:
        self._ended = ended
        """Called with the labels (transport, revision) and duration in seconds of each session that is over."""
        self._max = max_sessions
        self._seen: dict[str, tuple[float, float, Labels]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, session: str, now: float, transport: str, revision: str) -> None:
        """Record a message of a session."""
        seen = self._seen.get(session)
        if seen is not None:
            self._seen[session] = (seen[0], now, seen[2])
            return
        if len(self._seen) >= self._max:
            self._end(next(iter(self._seen)))
        self._seen[session] = (now, now, (transport, revision))

    def over(self, session: str) -> None:
        """Record the end of a session. Unknown sessions are ignored."""
        if session in self._seen:
            self._end(session)

    def count(self, now: float) -> dict[Labels, int]:
        """Return the number of active sessions by transport and revision."""
        for session in [each for each, seen in self._seen.items() if now - seen[1] > IDLE_SECONDS]:
            self._end(session)
        return dict(Counter(labels for _, _, labels in self._seen.values()))

    def _end(self, session: str) -> None:
        first, last, labels = self._seen.pop(session)
        self._ended(labels, last - first)


INTERVAL = 0.25
LAG_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WINDOW = 60.0
"""Seconds that `worst` and `blocked` cover."""
LATE = 0.2
"""A delay in seconds that users notice."""
_MAX_SAMPLES = round(WINDOW / INTERVAL)
"""Maximum samples in a window. A late sample covers more time."""


class LoopLag:
    """The delay of the event loop's timers, which every call waits for."""

    def __init__(
        self,
        registry: Metrics,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._histogram = registry.histogram(
            "millstream_event_loop_lag_seconds", "Delay of the event loop's timers.", bounds=LAG_BOUNDS
        ).of()
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)
        """Wake-up times of the event loop, and their delays."""

    @property
    def last(self) -> float:
        """The newest sample in seconds, or 0 before the first."""
        return self._samples[-1][1] if self._samples else 0.0

    @property
    def worst(self) -> float:
        """The largest sample of the last minute."""
        return self.worst_of(WINDOW)

    @property
    def blocked(self) -> float:
        """Return the seconds of the last minute in which the event loop was blocked."""
        return min(sum(lag for lag in self._since(WINDOW) if lag >= LATE), WINDOW)

    def worst_of(self, seconds: float) -> float:
        """Return the largest sample of the last `seconds`."""
        return max(self._since(seconds), default=0.0)

    def _since(self, seconds: float) -> list[float]:
        start = self._clock() - seconds
        return [lag for _, lag in takewhile(lambda each: each[0] >= start, reversed(self._samples))]

    async def run(self) -> None:
        """Measure until cancelled. The runtime owns the task."""
        while True:
            asked = self._clock()
            await self._sleep(INTERVAL)
            woken = self._clock()
            lag = max(woken - asked - INTERVAL, 0.0)
            self._histogram.observe(lag)
            self._samples.append((woken, lag))


class ProcessFigures:
    """Measurements of the process, and its CPU use since the last read."""

    def __init__(self, registry: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_read = clock()
        self._cpu = time.process_time()
        registry.read("gauge", "millstream_event_loop_tasks", "Tasks of the event loop.", lambda: {(): tasks()})

    def now(self) -> dict[str, float | None]:
        """Return the figures for a page. `cpu_percent` is relative to one core and to the time since the last call."""
        from millstream._telemetry.exposition import process_values  # noqa: PLC0415  pages and metrics alone need it

        now, cpu = self._clock(), time.process_time()
        passed = now - self._last_read
        percent = 100 * (cpu - self._cpu) / passed if passed > 0 else 0.0
        self._last_read, self._cpu = now, cpu
        values = process_values()
        return {
            "cpu_percent": round(percent, 1),
            "cpu_seconds": round(cpu, 3),
            "resident_bytes": resident_bytes(),
            "open_descriptors": values.get("process_open_fds"),
            "max_descriptors": values.get("process_max_fds"),
            "tasks": tasks(),
            "collections": sum(generation["collections"] for generation in gc.get_stats()),
        }


def resident_bytes() -> int | None:
    """Return the resident memory, or None on systems without ``/proc``."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def tasks() -> int:
    """Return the number of tasks in the running loop, or 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


_KEEP = 10.0
_STEP = 5.0
"""Seconds between two copies."""

Key = TypeVar("Key", bound=Hashable)


class PerSecond:
    """Counts for each of the last seconds, in a ring. Call `turn` when a second is over, then add to `count`."""

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.until = 0
        """The end of the current second."""
        self.count = 0
        """The count of the current second."""
        self._counts = [0] * size
        self._seconds = [-1] * size

    def turn(self, second: int) -> None:
        """Start a new second."""
        place = (self.until - 1) % self.size
        self._seconds[place], self._counts[place] = self.until - 1, self.count
        self.until, self.count = second + 1, 0

    def last(self, second: int, length: int) -> list[int]:
        """Return the counts of the `length` complete seconds before this one (fewer than `size`), oldest first."""
        if second >= self.until:
            self.turn(second)
        return [
            self._counts[each % self.size] if self._seconds[each % self.size] == each else 0
            for each in range(second - length, second)
        ]


class Growth(Generic[Key]):
    """The growth of counts over the last 10 to 15 seconds, or since the start if they weren't read before."""

    def __init__(self, now: float) -> None:
        self._started = now
        self._copies: deque[tuple[float, Mapping[Key, list[int]]]] = deque()

    def since(self, now: float, counts: Mapping[Key, list[int]]) -> tuple[float, dict[Key, list[int]]]:
        """Return the number of seconds covered, and the growth for each key. `counts` must be a copy."""
        copies = self._copies
        while copies and now - copies[0][0] > _KEEP + 2 * _STEP:
            copies.popleft()
        while len(copies) > 1 and now - copies[1][0] >= _KEEP:
            copies.popleft()
        nothing: Mapping[Key, list[int]] = {}
        began, before = copies[0] if copies else (self._started, nothing)
        if not copies or now - copies[-1][0] >= _STEP:
            copies.append((now, dict(counts)))
        grown = {
            key: [one - other for one, other in zip(values, before[key], strict=True)] if key in before else values
            for key, values in counts.items()
        }
        return now - began, grown
