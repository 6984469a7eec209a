"""What happened in the last day, in rings of slots: a second each at first, then longer and longer.

A slot holds, for each operation, the calls by duration and the errors, and what the process was like. It is kept
packed: a second costs some dozens of bytes, and all rings together stay below a megabyte whatever happens. Somebody
calls `take` once a second; calls themselves pay nothing. Slots begin at multiples of their length since 1970, so that
those of several processes can be added up. Nothing here knows what is counted, or reads a clock.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import nlargest
from typing import Final

import msgspec
from msgspec import Struct

from millstream._telemetry.metrics import Labels, Series

RINGS: Final = ((1, 120), (10, 120), (60, 90), (300, 90), (900, 100))
"""Seconds of a slot, and how many are kept: the last is a day."""
MAX_OPERATIONS: Final = 128
"""Of one slot: those with the most errors and calls. The others are counted together."""
Key = tuple[str, str]
REST: Final[Key] = ("", "")
"""What stands for operations of a slot beyond `MAX_OPERATIONS`."""


class Tally(Struct, array_like=True, gc=False):
    """The calls of one operation."""

    errors: int = 0
    buckets: dict[int, int] = {}
    """Number of the bucket -> calls."""

    def add(self, other: "Tally") -> None:
        """Count what another one counted."""
        self.errors += other.errors
        for bucket, calls in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + calls


class Gauges(Struct, array_like=True, frozen=True, gc=False):
    """What the process was like in one slot."""

    lag: float = 0.0
    """The worst delay of the event loop, in seconds."""
    cpu: float = 0.0
    """Seconds of CPU time."""
    memory: int = 0
    """Resident bytes, the most."""
    streams: int = 0
    """Open streams and connections, the most."""

    def with_(self, other: "Gauges") -> "Gauges":
        """Of two slots that follow each other."""
        return Gauges(
            max(self.lag, other.lag), self.cpu + other.cpu, max(self.memory, other.memory),
            max(self.streams, other.streams),
        )  # fmt: skip


class Slot(Struct, array_like=True):
    """What happened in one stretch of time."""

    tallies: dict[int, Tally]
    """By number of the operation, as the history counts them."""
    gauges: Gauges


class Past(Struct, array_like=True):
    """A stretch of history, as one process knows it."""

    step: int
    """Seconds of each point."""
    until: int
    """When the last whole second ended, in seconds since 1970."""
    bounds: tuple[float, ...]
    points: dict[int, tuple[Tally, Gauges]]
    """Beginning -> what all operations together did."""
    chosen: dict[int, Tally]
    """The same of one operation, if one was asked for."""
    operations: dict[Key, Tally]
    """Each operation over the whole stretch."""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Slot).decode


class History:
    """The rings of one process."""

    __slots__ = ("_counted", "_keys", "_last", "_numbers", "_rings", "bounds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are those between the buckets of every series that `take` is given."""
        # Configuration
        self.bounds = bounds
        # Process
        self._rings: list[deque[tuple[int, bytes]]] = [deque(maxlen=size) for _, size in RINGS]
        self._counted: dict[Labels, list[int]] = {}
        """Series -> what it had counted at the last look."""
        self._numbers: dict[Key, int] = {REST: 0}
        self._keys: list[Key] = [REST]
        self._last: int | None = None
        """The last second that was taken."""

    def take(self, second: int, series: Mapping[Labels, Series], gauges: Gauges) -> None:
        """Keep what was counted since the last look as what happened in this second.

        Args:
            second: since 1970; larger than at the last look, or nothing happens.
            series: by method, tool, outcome and whatever else. The metrics bound their number.
            gauges: of this second.
        """
        last = self._last
        if last is not None and second <= last:
            return
        for level in range(1, len(RINGS)):
            step = RINGS[level][0]
            if last is not None and second // step != last // step:
                self._close(level, last // step * step)
        self._last = second
        self._rings[0].append((second, _pack(Slot(self._grown(series), gauges))))

    def _grown(self, series: Mapping[Labels, Series]) -> dict[int, Tally]:
        tallies: dict[int, Tally] = {}
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
                errors = sum(buckets.values()) if labels[2] else 0
                tallies.setdefault(self._number((labels[0], labels[1])), Tally(0, {})).add(Tally(errors, buckets))
        return _bounded(tallies)

    def _number(self, key: Key) -> int:
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return number

    def _close(self, level: int, start: int) -> None:
        merged = self._merged(level - 1, start)
        if merged is not None:
            self._rings[level].append((start, _pack(merged)))

    def _merged(self, level: int, start: int) -> Slot | None:
        """All slots of a ring since a moment, as one; and what is younger than its last one, if it isn't the first."""
        slots = [_unpack(data) for at, data in self._rings[level] if at >= start]
        if level:
            step = RINGS[level][0]
            newest = self._rings[level][-1][0] + step if self._rings[level] else start
            rest = self._merged(level - 1, max(start, newest))
            if rest is not None:
                slots.append(rest)
        return _together(slots)

    def look(self, seconds: int, chosen: Key | None = None) -> Past:
        """The last so many seconds, in the finest slots that reach so far back.

        Args:
            seconds: at most a day.
            chosen: an operation whose own points are wanted, too.
        """
        level = next((n for n, (step, size) in enumerate(RINGS) if step * size >= seconds), len(RINGS) - 1)
        step = RINGS[level][0]
        last = self._last if self._last is not None else -1
        past = Past(step, last + 1, self.bounds, {}, {}, {})
        number = self._numbers.get(chosen, -1) if chosen is not None else -1
        for at, slot in self._slots(level, last + 1 - seconds):
            whole = Tally(0, {})
            for each, tally in slot.tallies.items():
                whole.add(tally)
                past.operations.setdefault(self._keys[each], Tally(0, {})).add(tally)
            past.points[at] = whole, slot.gauges
            if number in slot.tallies:
                past.chosen[at] = slot.tallies[number]
        return past

    def _slots(self, level: int, since: int) -> Iterable[tuple[int, Slot]]:
        step, ring = RINGS[level][0], self._rings[level]
        for at, data in ring:
            if at + step > since:
                yield at, _unpack(data)
        if level and self._last is not None:
            start = self._last // step * step
            begun = self._merged(level - 1, start)
            if begun is not None:
                yield start, begun

    def size(self) -> int:
        """Bytes of all packed slots."""
        return sum(len(data) for ring in self._rings for _, data in ring)


def _together(slots: list[Slot]) -> Slot | None:
    if not slots:
        return None
    tallies: dict[int, Tally] = {}
    gauges = Gauges()
    for slot in slots:
        gauges = gauges.with_(slot.gauges)
        for number, tally in slot.tallies.items():
            tallies.setdefault(number, Tally(0, {})).add(tally)
    return Slot(_bounded(tallies), gauges)


def _bounded(tallies: dict[int, Tally]) -> dict[int, Tally]:
    if len(tallies) <= MAX_OPERATIONS:
        return tallies

    def hurts(number: int) -> tuple[int, int]:
        return tallies[number].errors, sum(tallies[number].buckets.values())

    kept = set(nlargest(MAX_OPERATIONS, (number for number in tallies if number), key=hurts))
    rest = tallies.get(0, Tally(0, {}))
    for number, tally in tallies.items():
        if number and number not in kept:
            rest.add(tally)
    return {0: rest, **{number: tallies[number] for number in tallies if number in kept}}
