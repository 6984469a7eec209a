"""How long to wait before a worker that died is replaced: a crash loop must not burn the machine."""

from collections.abc import Callable
from typing import Final

FIRST: Final = 0.5
LONGEST: Final = 30.0
WELL: Final = 30.0
"""Seconds of life after which a worker counts as well, and its death as the first."""


class BackOff:
    """The waits of one worker: none after a death out of good health, then longer and longer."""

    __slots__ = ("_clock", "_deaths", "_started")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._deaths = 0

    def began(self) -> None:
        """A process was started."""
        self._started = self._clock()

    def died(self) -> float:
        """The process has ended: how many seconds to wait for the next."""
        if self._clock() - self._started >= WELL:
            self._deaths = 0
        self._deaths += 1
        return 0.0 if self._deaths == 1 else min(LONGEST, FIRST * 2.0 ** (self._deaths - 2))
