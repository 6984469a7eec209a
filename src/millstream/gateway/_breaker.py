"""The circuit breaker and call statistics of one upstream."""

import random
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

FAILURES: Final = 5
"""Consecutive calls without a response that open the breaker."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MAX_DOUBLED = 8
_RING = 512
"""Number of recent durations that quantiles are computed from."""


class Breaker:
    """Refuses calls to an upstream that doesn't respond, so callers fail fast.

    It opens after `FAILURES` calls without a response. After a pause with jitter, it lets one call through: a response
    closes it; otherwise it stays open, and the next pause is twice as long.
    """

    __slots__ = ("_clock", "_doubled", "_failures", "_on_reset", "_ring", "_trial", "_until", "answered", "failed")

    def __init__(self, on_reset: Callable[[], None], *, clock: Callable[[], float] = monotonic) -> None:
        """Create a closed breaker. `on_reset` is called when it closes again."""
        self._clock = clock
        self._on_reset = on_reset
        self._failures = 0
        self._until = 0.0
        """Time of the next trial call; 0 while closed."""
        self._trial = False
        self._doubled = 0
        self.answered: int = 0
        """Number of calls with a response."""
        self.failed: int = 0
        """Number of calls without a response."""
        self._ring: list[float] = []

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open."""
        return self._until != 0

    def refuses(self) -> bool:
        """Return whether to refuse a call. If not, finish the call with `succeed`, `fail`, or `leave`."""
        if not self._until:
            return False
        if self._trial or self._clock() < self._until:
            return True
        self._trial = True
        return False

    def succeed(self, seconds: float) -> None:
        """Record a call with a response, including errors."""
        ring, count = self._ring, self.answered
        if len(ring) < _RING:
            ring.append(seconds)
        else:
            ring[count % _RING] = seconds
        self.answered = count + 1
        if self._failures or self._until:
            self.reset()

    def fail(self, *, counts: bool = True) -> None:
        """Record a call without a response. With `counts=False`, it doesn't affect the breaker."""
        self.failed += 1
        if not counts:
            return
        self._failures += 1
        if self._until or self._failures >= FAILURES:
            self.trip()

    def leave(self) -> None:
        """Record a call that says nothing about the upstream: it was canceled, or waits for a person."""
        self._trial = False

    def trip(self) -> None:
        """Open the breaker for the next pause."""
        pause = min(_FIRST_PAUSE * 2.0**self._doubled, _LONGEST_PAUSE)
        self._doubled = min(self._doubled + 1, _MAX_DOUBLED)
        self._until = self._clock() + pause * random.uniform(0.75, 1)  # noqa: S311  it's no secret
        self._trial = False

    def reset(self) -> None:
        """Close the breaker."""
        was_open = self.is_open
        self._failures = self._doubled = 0
        self._until, self._trial = 0.0, False
        if was_open:
            self._on_reset()

    def describe(self) -> dict[str, Any]:
        """Return call counts, and quantiles of the last `_RING` response times in milliseconds."""
        figures: dict[str, Any] = {"calls": self.answered + self.failed, "unanswered": self.failed}
        if self._ring:
            ordered = sorted(self._ring)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[name] = round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)
        return figures
