"""Restart delays of workers, so that a crash loop doesn't consume the machine."""

from collections.abc import Callable

FIRST = 0.5
LONGEST = 30.0
WELL = 5.0
"""Seconds of service after which a worker counts as healthy, which resets the delay. A start takes about one second of
a core, which bounds the load of a crash loop.
"""


class BackOff:
    """The restart delays of one worker: none for the first crash of a healthy one, then growing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        """When the newest process began to serve; the time before that says nothing about its health."""
        self._deaths = 0

    def serves(self) -> None:
        """Record that a process serves from now on."""
        self._since = self._clock()

    def record_death(self) -> float:
        """Record that the process has ended, and return the seconds to wait before the next one."""
        if self._since is not None and self._clock() - self._since >= WELL:
            self._deaths = 0
        self._since = None
        self._deaths += 1
        return 0.0 if self._deaths == 1 else min(LONGEST, FIRST * 2.0 ** (self._deaths - 2))
