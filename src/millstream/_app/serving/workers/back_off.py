"""How long to wait before a worker that died is replaced: a crash loop must not burn the machine."""

from collections.abc import Callable
from typing import Final

FIRST: Final = 0.5
LONGEST: Final = 30.0
WELL: Final = 5.0
"""Seconds of service after which a worker counts as well, and its death as the first. A start takes a second or so of
one core: with lives of this length, that's what a crash loop may take.
"""


class BackOff:
    """The waits of one worker: none after a death out of good health, then longer and longer."""

    __slots__ = ("_clock", "_deaths", "_since")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        """When the newest process began to serve. The time before that says nothing about its health."""
        self._deaths = 0

    def serves(self) -> None:
        """A process has started, and serves from now on."""
        self._since = self._clock()

    def died(self) -> float:
        """The process has ended: how many seconds to wait for the next."""
        if self._since is not None and self._clock() - self._since >= WELL:
            self._deaths = 0
        self._since = None
        self._deaths += 1
        return 0.0 if self._deaths == 1 else min(LONGEST, FIRST * 2.0 ** (self._deaths - 2))
