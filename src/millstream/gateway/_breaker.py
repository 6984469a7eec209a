"""The circuit breaker and call statistics of one upstream."""

import random
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

FAILURES: Final = 5
"""Consecutive calls without a response that open the breaker."""
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MAX_DOUBLINGS = 8
_MAX_DURATIONS = 512
"""Maximum recent response times kept for the quantiles."""


class Breaker:
    """Refuses calls to an upstream that doesn't respond, so callers fail fast.

    It opens after `FAILURES` calls without a response. After a pause with jitter, it lets one call through: a response
    closes it; otherwise it stays open, and the next pause is twice as long.
    """

    __slots__ = (
        "_clock", "_doublings", "_durations", "_failures", "_has_trial", "_on_reset", "_retry_at", "failure_count",
        "response_count",
    )  # fmt: skip

    def __init__(self, on_reset: Callable[[], None], *, clock: Callable[[], float] = monotonic) -> None:
        """Create a closed breaker. `on_reset` is called when it closes again."""
        self._clock = clock
        self._on_reset = on_reset
        self._failures = 0
        self._retry_at = 0.0
        """Time of the next trial call; 0 while closed."""
        self._has_trial = False
        self._doublings = 0
        self.response_count: int = 0
        """Number of calls with a response."""
        self.failure_count: int = 0
        """Number of calls without a response."""
        self._durations: list[float] = []

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open."""
        return self._retry_at != 0

    def refuses(self) -> bool:
        """Return whether to refuse a call. If not, finish the call with `succeed`, `fail`, or `cancel`."""
        if not self._retry_at:
            return False
        if self._has_trial or self._clock() < self._retry_at:
            return True
        self._has_trial = True
        return False

    def succeed(self, seconds: float) -> None:
        """Record a call with a response, including errors."""
        ring, count = self._durations, self.response_count
        if len(ring) < _MAX_DURATIONS:
            ring.append(seconds)
        else:
            ring[count % _MAX_DURATIONS] = seconds
        self.response_count = count + 1
        if self._failures or self._retry_at:
            self.reset()

    def fail(self, *, counts: bool = True) -> None:
        """Record a call without a response. With `counts=False`, it doesn't affect the breaker."""
        self.failure_count += 1
        if not counts:
            return
        self._failures += 1
        if self._retry_at or self._failures >= FAILURES:
            self.trip()

    def cancel(self) -> None:
        """Record a call that was canceled or is waiting for a user, which doesn't affect the breaker."""
        self._has_trial = False

    def trip(self) -> None:
        """Open the breaker for the next pause."""
        pause = min(_FIRST_PAUSE * 2.0**self._doublings, _LONGEST_PAUSE)
        self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        self._retry_at = self._clock() + pause * random.uniform(0.75, 1)  # noqa: S311  jitter
        self._has_trial = False

    def reset(self) -> None:
        """Close the breaker."""
        was_open = self.is_open
        self._failures = self._doublings = 0
        self._retry_at, self._has_trial = 0.0, False
        if was_open:
            self._on_reset()

    def describe(self) -> dict[str, Any]:
        """Return call counts, and quantiles of the last `_MAX_DURATIONS` response times in milliseconds."""
        figures: dict[str, Any] = {"calls": self.response_count + self.failure_count, "unanswered": self.failure_count}
        if self._durations:
            ordered = sorted(self._durations)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[name] = round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000, 3)
        return figures
