"""The time limit of every wait in tests.

It catches hangs, and isn't a measurement. Tests have to pass on a machine that's five times slower, or that stops for
some seconds (`make busy`).
"""

import asyncio

WAIT = 120.0


def advance_clock(seconds: float) -> None:
    """Advance the clock of the running event loop, so timers that are due within `seconds` fire immediately."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
