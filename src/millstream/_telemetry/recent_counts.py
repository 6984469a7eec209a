"""Recent activity for live pages: calls in each of the last seconds, and the recent growth of counts."""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

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
