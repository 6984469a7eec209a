"""The last hour of activity, in a ring of ten-second slots.

A slot contains the calls by duration and the errors of each operation, and the state of the process. Call `take` once a
second. Calls themselves have no overhead. Slots are stored packed, which also lets another thread read them. They start
at multiples of their length since 1970, so slots of several processes can be added up.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import nlargest
from typing import Final

import msgspec
from msgspec import Struct

from millstream._telemetry.metrics import Labels, Series

SLOT = 10
"""Seconds of a slot."""
MAX_SLOTS = 360
"""Number of slots in an hour."""
STEPS = {60: SLOT, 900: SLOT, 3_600: 60}
"""Available periods in seconds -> seconds per point."""
MAX_OPERATIONS = 64
"""Maximum operations per slot: those with the most errors and calls. All others are counted together."""
Key = tuple[str, str]
REST: Final[Key] = ("", "")
"""The key of operations beyond `MAX_OPERATIONS`."""


class OperationTally(Struct, array_like=True, gc=False):
    """The calls of one operation."""

    errors: int = 0
    buckets: dict[int, int] = {}
    """Bucket number -> calls."""

    def add(self, other: "OperationTally") -> None:
        """Add another tally."""
        self.errors += other.errors
        for bucket, calls in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + calls


class Gauges(Struct, array_like=True, frozen=True, gc=False):
    """The state of the process in one slot."""

    lag: float = 0.0
    """The worst delay of the event loop, in seconds."""
    cpu: float = 0.0
    """Seconds of CPU time."""
    memory: int = 0
    """The maximum resident memory in bytes."""
    streams: int = 0
    """The maximum number of open streams and connections."""

    def with_(self, other: "Gauges") -> "Gauges":
        """Return the gauges of two consecutive slots together."""
        return Gauges(
            max(self.lag, other.lag),
            self.cpu + other.cpu,
            max(self.memory, other.memory),
            max(self.streams, other.streams),
        )


class HistorySlot(Struct, array_like=True):
    """The events of one slot."""

    at: int
    """Its beginning, in seconds since 1970."""
    tallies: dict[int, OperationTally]
    """Number of the operation -> its calls."""
    gauges: Gauges


class HistoryWindow(Struct, array_like=True):
    """A part of the history of one process."""

    step: int
    """Seconds of each point."""
    until: int
    """The end of the last complete second, in seconds since 1970."""
    bounds: tuple[float, ...]
    points: dict[int, tuple[OperationTally, Gauges]]
    """Start -> all operations together."""
    chosen: dict[int, OperationTally]
    """The same for one operation, if one was selected."""
    operations: dict[Key, OperationTally]
    """Each operation over the whole period."""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(HistorySlot).decode


class History:
    """The ring of one process."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Create a history. `bounds` are the bucket bounds of every series passed to `take`."""
        # Configuration
        self.bounds = bounds
        # Process
        self._ring: deque[bytes] = deque(maxlen=MAX_SLOTS)
        self._slot: HistorySlot | None = None
        """The current slot."""
        self._counted: dict[Labels, list[int]] = {}
        """Series -> its counts at the last call of `take`."""
        self._numbers: dict[Key, int] = {REST: 0}
        self._keys: list[Key] = [REST]
        self._last: int | None = None
        """The second of the last call of `take`."""

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
        start, slot = second // SLOT * SLOT, self._slot
        if slot is None or slot.at != start:
            if slot is not None:
                self._ring.append(_pack(HistorySlot(slot.at, _limit_operations(slot.tallies), slot.gauges)))
            slot = self._slot = HistorySlot(start, {}, Gauges())
        slot.gauges = slot.gauges.with_(gauges)
        for number, tally in self._growth(series):
            slot.tallies.setdefault(number, OperationTally(0, {})).add(tally)

    def _growth(self, series: Mapping[Labels, Series]) -> Iterator[tuple[int, OperationTally]]:
        for labels, each in series.items():
            known = self._counted.get(labels)
            if known == each.counts:
                continue
            counts = list(each.counts)
            before = known if known is not None else [0] * len(counts)
            self._counted[labels] = counts
            grown = enumerate(zip(counts, before, strict=True))
            buckets = {place: now - then for place, (now, then) in grown if now != then}
            if buckets:
                yield (
                    self._number((labels[0], labels[1])),
                    OperationTally(sum(buckets.values()) if labels[2] else 0, buckets),
                )

    def _number(self, key: Key) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return number

    def look(self, seconds: int, chosen: Key | None = None) -> HistoryWindow:
        """Return the last `seconds` of the history. Call it in a thread, because many operations take a while.

        Args:
            seconds: One of `STEPS`.
            chosen: An operation whose points are returned separately, too.
        """
        step, until = STEPS.get(seconds, SLOT), self._last + 1 if self._last is not None else 0
        past = HistoryWindow(step, until, self.bounds, {}, {}, {})
        number = self._numbers.get(chosen, -1) if chosen is not None else -1
        slots = list(self._ring) if self._slot is None else [*self._ring, _pack(self._slot)]
        for slot in map(_unpack, slots):
            at = slot.at // step * step
            if at + step <= until - seconds:
                continue
            whole, gauges = past.points.get(at) or (OperationTally(0, {}), Gauges())
            past.points[at] = whole, gauges.with_(slot.gauges)
            for each, tally in _limit_operations(slot.tallies).items():
                whole.add(tally)
                past.operations.setdefault(self._keys[each], OperationTally(0, {})).add(tally)
            if number in slot.tallies:
                past.chosen.setdefault(at, OperationTally(0, {})).add(slot.tallies[number])
        return past

    def size(self) -> int:
        """Return the bytes of all packed slots."""
        return sum(map(len, self._ring))


def _limit_operations(tallies: dict[int, OperationTally]) -> dict[int, OperationTally]:
    if len(tallies) <= MAX_OPERATIONS:
        return tallies

    def hurts(number: int) -> tuple[int, int]:
        return tallies[number].errors, sum(tallies[number].buckets.values())

    kept = set(nlargest(MAX_OPERATIONS, (number for number in tallies if number), key=hurts))
    rest = tallies.get(0, OperationTally(0, {}))
    for number, tally in tallies.items():
        if number and number not in kept:
            rest.add(tally)
    return {0: rest, **{number: tallies[number] for number in tallies if number in kept}}
