"""Figures of the process and its event loop: CPU, memory, descriptors, tasks, and the delay of the loop."""

import asyncio
import gc
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

from millstream._telemetry.metrics import Metrics

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
            "hub_event_loop_lag_seconds", "Delay of the event loop's timers.", bounds=LAG_BOUNDS
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
        registry.read("gauge", "hub_event_loop_tasks", "Tasks of the event loop.", lambda: {(): tasks()})

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
