"""Figures of the process and its event loop, active sessions, and recent activity, for live pages."""

import asyncio
import gc
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from heapq import nlargest
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._telemetry.messages import SERVER_FAILURES
from millstream._telemetry.metrics import Labels, Metrics, Series, process_values

SECONDS_EACH = 10
"""The length of an interval, in seconds."""
MAX_INTERVALS = 360
"""Number of intervals in an hour."""
DAY_INTERVALS = 288
"""Number of five-minute intervals in a day."""
STEPS = {60: SECONDS_EACH, 900: SECONDS_EACH, 3_600: 60, 86_400: 300}
"""Available periods in seconds -> seconds per point."""
MAX_OPERATIONS = 64
"""Maximum operations per interval. The ones with the most errors and calls stay. Others are counted together."""
Key = tuple[str, str]
REST: Final[Key] = ("", "")
"""The key of operations beyond `MAX_OPERATIONS`."""


class OperationTally(Struct, array_like=True, gc=False):
    """The calls of one operation."""

    errors: int = 0
    buckets: dict[int, int] = {}
    """Number of calls by bucket number."""
    server_errors: int = 0
    """Number of errors that the server caused."""

    def add(self, other: "OperationTally") -> None:
        """Add another tally."""
        self.errors += other.errors
        self.server_errors += other.server_errors
        for bucket, calls in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + calls


class Gauges(Struct, array_like=True, frozen=True, gc=False):
    """The state of the process in one interval."""

    lag: float = 0.0
    """The longest delay of the event loop, in seconds."""
    cpu: float = 0.0
    """Seconds of CPU time."""
    memory: int = 0
    """The maximum resident memory in bytes."""

    def with_(self, other: "Gauges") -> "Gauges":
        """Return the combined gauges of two consecutive intervals."""
        return Gauges(
            max(self.lag, other.lag),
            self.cpu + other.cpu,
            max(self.memory, other.memory),
        )


class HistoryInterval(Struct, array_like=True):
    """The events of one interval."""

    at: int
    """Start of the interval, in seconds since 1970."""
    tallies: dict[int, OperationTally]
    """Number of the operation -> its calls."""
    gauges: Gauges


class HistoryWindow(Struct, array_like=True):
    """A part of one process's history."""

    step: int
    """Length of each point, in seconds."""
    until: int
    """The end of the last complete second, in seconds since 1970."""
    bounds: tuple[float, ...]
    points: dict[int, tuple[OperationTally, Gauges]]
    """Start of each point -> all operations together."""
    chosen: dict[int, OperationTally]
    """The same for the selected operation, if any."""
    operations: dict[Key, OperationTally]
    """Each operation over the whole period."""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(HistoryInterval).decode


class _Ring(Struct):
    """Consecutive intervals of one length."""

    length: int
    """In seconds."""
    packed: deque[bytes]
    current: HistoryInterval | None = None

    def add(self, second: int, tallies: list[tuple[int, OperationTally]], gauges: Gauges) -> None:
        start, interval = second // self.length * self.length, self.current
        if interval is None or interval.at != start:
            if interval is not None:
                kept = HistoryInterval(interval.at, _limit_operations(interval.tallies), interval.gauges)
                self.packed.append(_pack(kept))
            interval = self.current = HistoryInterval(start, {}, Gauges())
        interval.gauges = interval.gauges.with_(gauges)
        for number, tally in tallies:
            interval.tallies.setdefault(number, OperationTally()).add(tally)


class History:
    """The history of one process: the last hour in ten-second intervals, and the last day in five-minute intervals.

    Each interval has each operation's calls by duration and its errors, and the state of the process. Call `take`
    once a second. Calls themselves have no overhead. Intervals are stored packed, which also lets another thread read
    them. They start at multiples of their length since 1970, so intervals of several processes can be added up.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Create a history. `bounds` are the bucket bounds of every series passed to `take`."""
        self.bounds = bounds
        self._hour = _Ring(SECONDS_EACH, deque(maxlen=MAX_INTERVALS))
        self._day = _Ring(STEPS[86_400], deque(maxlen=DAY_INTERVALS))
        self._counted: dict[Labels, list[int]] = {}
        """Series -> its counts at the last call of `take`."""
        self._numbers: dict[Key, int] = {REST: 0}
        self._last: int | None = None
        """The second in which `take` was last called."""

    def take(self, second: int, series: Mapping[Labels, Series], gauges: Gauges) -> None:
        """Record the growth of the counts since the last call as the activity of this second.

        Args:
            second: Seconds since 1970. Ignored unless larger than in the last call.
            series: Series by method, tool, outcome, and further labels. The metrics limit their number.
            gauges: The state of the process in this second.
        """
        if self._last is not None and second <= self._last:
            return
        self._last = second
        tallies = [*self._growth(series)]
        self._hour.add(second, tallies, gauges)
        self._day.add(second, tallies, gauges)

    def _growth(self, series: Mapping[Labels, Series]) -> Iterator[tuple[int, OperationTally]]:
        for labels, each in series.items():
            before, counts = self._counted.get(labels, [0] * len(each.counts)), each.counts
            if before != counts:
                self._counted[labels] = [*counts]
                grown = enumerate(zip(counts, before, strict=True))
                buckets = {place: now - then for place, (now, then) in grown if now != then}
                number = self._numbers.setdefault((labels[0], labels[1]), len(self._numbers))
                errors = sum(buckets.values()) if labels[2] else 0
                yield number, OperationTally(errors, buckets, errors if labels[2] in SERVER_FAILURES else 0)

    def look(self, seconds: int, chosen: Key | None = None) -> HistoryWindow:
        """Return the last `seconds` of the history. Call it in a thread, because many operations take a while.

        Args:
            seconds: One of `STEPS`.
            chosen: An operation whose points are also returned separately.
        """
        step, until = STEPS.get(seconds, SECONDS_EACH), self._last + 1 if self._last is not None else 0
        past = HistoryWindow(step, until, self.bounds, {}, {}, {})
        number = self._numbers.get(chosen, -1) if chosen is not None else -1
        ring = self._day if seconds > 3_600 else self._hour
        intervals = list(ring.packed) if ring.current is None else [*ring.packed, _pack(ring.current)]
        keys = list(self._numbers)  # after the intervals, because other threads may add operations
        for interval in map(_unpack, intervals):
            at = interval.at // step * step
            if at + step <= until - seconds:
                continue
            whole, gauges = past.points.get(at) or (OperationTally(), Gauges())
            past.points[at] = whole, gauges.with_(interval.gauges)
            for each, tally in _limit_operations(interval.tallies).items():
                whole.add(tally)
                past.operations.setdefault(keys[each], OperationTally()).add(tally)
            if number in interval.tallies:
                past.chosen.setdefault(at, OperationTally()).add(interval.tallies[number])
        return past


def _limit_operations(tallies: dict[int, OperationTally]) -> dict[int, OperationTally]:
    if len(tallies) <= MAX_OPERATIONS:
        return tallies

    def hurts(number: int) -> tuple[int, int, int]:
        return tallies[number].server_errors, tallies[number].errors, sum(tallies[number].buckets.values())

    kept = {number: tallies[number] for number in nlargest(MAX_OPERATIONS, filter(None, tallies), key=hurts)}
    rest = OperationTally()
    for number in tallies.keys() - kept.keys():
        rest.add(tallies[number])
    return {0: rest, **kept}


IDLE_SECONDS = 300.0
MAX_SESSIONS = 10_000


class ActiveSessions(Struct, eq=False):
    """The times of the first and last message of each session.

    Any worker can verify a session's sealed id, so no worker knows when the session ends. It's treated as over after
    `IDLE_SECONDS` without a message. Its duration is the time from the first to the last message. The table is bounded:
    when it's full, the oldest session is treated as over.
    """

    ended: Callable[[Labels, float], None]
    """Called when a session ends, with its labels (transport, revision) and its duration in seconds."""
    max_sessions: int = MAX_SESSIONS
    _seen: dict[str, tuple[float, float, Labels]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, session: str, now: float, transport: str, revision: str) -> None:
        """Record a message of a session."""
        seen = self._seen.get(session)
        if seen is not None:
            self._seen[session] = (seen[0], now, seen[2])
            return
        if len(self._seen) >= self.max_sessions:
            self.over(next(iter(self._seen)))
        self._seen[session] = (now, now, (transport, revision))

    def over(self, session: str) -> None:
        """Record the end of a session. Unknown sessions are ignored."""
        seen = self._seen.pop(session, None)
        if seen is not None:
            first, last, labels = seen
            self.ended(labels, last - first)

    def count(self, now: float) -> dict[Labels, int]:
        """Return the number of active sessions by transport and revision."""
        for session in [each for each, seen in self._seen.items() if now - seen[1] > IDLE_SECONDS]:
            self.over(session)
        return dict(Counter(labels for _, _, labels in self._seen.values()))


INTERVAL = 0.25
LAG_BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
WINDOW = 60.0
"""Seconds that `blocked` covers."""
LATE = 0.2
"""Delay above which users notice it, in seconds."""
_MAX_SAMPLES = round(WINDOW / INTERVAL)
"""Maximum samples in a window. A late sample covers more time."""


class LoopLag:
    """The delay of the event loop's timers, which affects its calls."""

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
            "millstream_event_loop_lag_seconds", "Delay of event loop timers.", bounds=LAG_BOUNDS
        ).of()
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)
        """Wake-up times of the event loop, and their delays."""

    @property
    def last(self) -> float:
        """The newest sample in seconds, or 0 before the first."""
        return self._samples[-1][1] if self._samples else 0.0

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
        """Measure until canceled. The runtime owns the task."""
        while True:
            asked = self._clock()
            await self._sleep(INTERVAL)
            woken = self._clock()
            lag = max(woken - asked - INTERVAL, 0.0)
            self._histogram.observe(lag)
            self._samples.append((woken, lag))


def process_figures() -> dict[str, float | None]:
    """Return figures of the process for a page."""
    values = process_values()
    return {
        "cpu_seconds": round(time.process_time(), 3),
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


class PerSecond:
    """Counts per second. Add to `count`, and call `turn` after each second."""

    def __init__(self) -> None:
        self.until = 0
        """The end of the current second."""
        self.count = 0
        """The count of the current second."""
        self._last = 0
        """The count of the second before."""

    def turn(self, second: int) -> None:
        """Start a new second."""
        self._last = self.count if second == self.until else 0
        self.until, self.count = second + 1, 0

    def last(self, second: int) -> int:
        """Return the count of the complete second before this one."""
        if second >= self.until:
            self.turn(second)
        return self._last
