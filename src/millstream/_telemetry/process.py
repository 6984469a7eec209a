"""The process and its event loop: CPU, memory, descriptors, tasks, garbage collection, and how late the loop is.

Figures come from the standard library and, where there is one, `/proc`; what a system does not tell is left out.
"""

import asyncio
import gc
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

from millstream._telemetry.metrics import Labels, Metrics

if sys.platform != "win32":
    import resource

INTERVAL = 0.25
LAG_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WINDOW = 60.0
"""Seconds that `worst` and `stood` look back."""
LATE = 0.2
"""Seconds from which a delay is one that somebody notices."""
_KEPT = round(WINDOW / INTERVAL)
"""Samples of a window at most: a late one takes longer."""

_STARTED = time.time()


class LoopLag:
    """How much later than asked the event loop wakes a sleeper: what every call waits for besides its own work."""

    __slots__ = ("_clock", "_histogram", "_samples", "_sleep")

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
        self._samples: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        """When the loop woke up, and how late that was."""

    @property
    def last(self) -> float:
        """Seconds of the newest sample; 0 before the first."""
        return self._samples[-1][1] if self._samples else 0.0

    @property
    def worst(self) -> float:
        """The largest sample of the last minute."""
        return self.worst_of(WINDOW)

    @property
    def stood(self) -> float:
        """For how many seconds of the last minute nothing could run: what the health of a server is judged by.

        One late sample says little: a server that has just started has some, and so has a machine that was busy.
        """
        return min(sum(lag for lag in self._since(WINDOW) if lag >= LATE), WINDOW)

    def worst_of(self, seconds: float) -> float:
        """The largest sample of the last so many seconds."""
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
    """The process now, and its share of CPU time since the last look."""

    __slots__ = ("_clock", "_cpu", "_looked")

    def __init__(self, registry: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked = clock()
        self._cpu = time.process_time()
        read, each = registry.read, ("generation",)
        read("counter", "process_cpu_seconds_total", "User and system CPU time.", lambda: {(): time.process_time()})
        read("gauge", "process_resident_memory_bytes", "Resident memory.", lambda: _known(resident_bytes()))
        read("gauge", "process_open_fds", "Open file descriptors.", lambda: _known(open_descriptors()))
        read("gauge", "process_max_fds", "Limit of open file descriptors.", lambda: _known(max_descriptors()))
        read(
            "gauge", "process_start_time_seconds", "Start, in seconds since 1970.", lambda: {(): _STARTED}, merge="min"
        )
        read("gauge", "hub_event_loop_tasks", "Tasks of the event loop.", lambda: {(): tasks()})
        read("counter", "python_gc_collections_total", "Garbage collections.", lambda: _collected("collections"), each)
        freed = "Objects freed by them."
        read("counter", "python_gc_objects_collected_total", freed, lambda: _collected("collected"), each)

    def now(self) -> dict[str, float | None]:
        """Figures for a page; `cpu_percent` is of one core, over the time since the last call."""
        now, cpu = self._clock(), time.process_time()
        passed = now - self._looked
        percent = 100 * (cpu - self._cpu) / passed if passed > 0 else 0.0
        self._looked, self._cpu = now, cpu
        return {
            "cpu_percent": round(percent, 1),
            "cpu_seconds": round(cpu, 3),
            "resident_bytes": resident_bytes(),
            "open_descriptors": open_descriptors(),
            "max_descriptors": max_descriptors(),
            "tasks": tasks(),
            "collections": sum(generation["collections"] for generation in gc.get_stats()),
        }


def resident_bytes() -> int | None:
    """Resident memory; where the system tells only its peak, that."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return _peak_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def open_descriptors() -> int | None:
    """How many files and sockets are open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1  # noqa: PTH208  names are enough; one is the listing's own
        except OSError:
            continue
    return None


def max_descriptors() -> int | None:
    """How many may be open."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def tasks() -> int:
    """Tasks of the running loop; 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def _known(value: float | None) -> dict[Labels, float]:
    return {} if value is None else {(): value}


def _collected(figure: str) -> dict[Labels, float]:
    return {(str(number),): generation[figure] for number, generation in enumerate(gc.get_stats())}
