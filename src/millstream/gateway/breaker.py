"""The circuit breaker of one upstream, and the figures of its calls."""

import random
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

FAILURES: Final = 5
"""Calls without an answer, one after the other, that open the breaker."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MAX_DOUBLED = 8
_RING = 512
"""Durations that quantiles are made of."""


class Breaker:
    """Refuses calls to an upstream that doesn't answer, so that callers needn't wait to learn it.

    After `FAILURES` calls without an answer it's open. After a pause with jitter it lets one call through: if that is
    answered, it closes; otherwise it stays open, and the next pause is twice as long.
    """

    __slots__ = ("_clock", "_doubled", "_failures", "_on_reset", "_ring", "_trial", "_until", "answered", "failed")

    def __init__(self, on_reset: Callable[[], None], *, clock: Callable[[], float] = monotonic) -> None:
        """A closed one. `on_reset` is called when it closes again."""
        self._clock = clock
        self._on_reset = on_reset
        self._failures = 0
        self._until = 0.0
        """When the next call may try; 0 while it's closed."""
        self._trial = False
        self._doubled = 0
        self.answered: int = 0
        """Calls that got an answer."""
        self.failed: int = 0
        """Calls that got none."""
        self._ring: list[float] = []

    @property
    def is_open(self) -> bool:
        """Whether calls are refused."""
        return self._until != 0

    def refuses(self) -> bool:
        """Return whether a call is to be refused. A call that isn't ends with `succeed`, `fail`, or `leave`."""
        if not self._until:
            return False
        if self._trial or self._clock() < self._until:
            return True
        self._trial = True
        return False

    def succeed(self, seconds: float) -> None:
        """Take note of a call that was answered, by an error too."""
        ring, count = self._ring, self.answered
        if len(ring) < _RING:
            ring.append(seconds)
        else:
            ring[count % _RING] = seconds
        self.answered = count + 1
        if self._failures or self._until:
            self.reset()

    def fail(self, *, counts: bool = True) -> None:
        """Take note of a call without an answer. Without `counts`, it says nothing about other calls."""
        self.failed += 1
        if not counts:
            return
        self._failures += 1
        if self._until or self._failures >= FAILURES:
            self.trip()

    def leave(self) -> None:
        """Take note of a call that says nothing about the upstream: it was cancelled, or waits for a person."""
        self._trial = False

    def trip(self) -> None:
        """Open it for the next pause."""
        pause = min(_FIRST_PAUSE * 2.0**self._doubled, _LONGEST_PAUSE)
        self._doubled = min(self._doubled + 1, _MAX_DOUBLED)
        self._until = self._clock() + pause * random.uniform(0.75, 1)  # noqa: S311  it's no secret
        self._trial = False

    def reset(self) -> None:
        """Close it."""
        was_open = self.is_open
        self._failures = self._doubled = 0
        self._until, self._trial = 0.0, False
        if was_open:
            self._on_reset()

    def describe(self) -> dict[str, Any]:
        """Return counts of calls, and quantiles of the last `_RING` answers in milliseconds."""
        figures: dict[str, Any] = {"calls": self.answered + self.failed, "unanswered": self.failed}
        if self._ring:
            ordered = sorted(self._ring)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[name] = round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)
        return figures
