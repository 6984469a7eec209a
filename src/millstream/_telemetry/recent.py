"""What happened lately: calls in each of the last seconds, and how counts grew over the last moments.

For live pages; the metrics themselves only ever grow. The clock is the caller's. Nothing here knows what is counted.
"""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

_KEEP = 10.0
_STEP = 5.0
"""Seconds between two copies."""

Key = TypeVar("Key", bound=Hashable)


class PerSecond:
    """Counts for each of the last seconds, in a ring."""

    __slots__ = ("_counts", "_seconds", "size")

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._counts = [0] * size
        self._seconds = [-1] * size

    def add(self, second: int) -> None:
        """Count one in this second."""
        place = second % self.size
        if self._seconds[place] != second:
            self._seconds[place] = second
            self._counts[place] = 0
        self._counts[place] += 1

    def last(self, second: int, length: int) -> list[int]:
        """The counts of the `length` whole seconds before this one (fewer than `size`), oldest first."""
        return [
            self._counts[each % self.size] if self._seconds[each % self.size] == each else 0
            for each in range(second - length, second)
        ]


class Growth(Generic[Key]):
    """How lists of counts grew over the last 10 to 15 seconds, or since the beginning while nobody asked."""

    __slots__ = ("_copies", "_started")

    def __init__(self, now: float) -> None:
        self._started = now
        self._copies: deque[tuple[float, Mapping[Key, list[int]]]] = deque()

    def since(self, now: float, counts: Mapping[Key, list[int]]) -> tuple[float, dict[Key, list[int]]]:
        """Seconds looked back over, and for each key what was added in them. `counts` must be a copy."""
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
