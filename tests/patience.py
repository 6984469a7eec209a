"""The timeout of every wait in every test.

It only catches hangs and never measures speed: tests must also pass on a machine that is five times slower or that
freezes for seconds (`make busy`).
"""

import asyncio

WAIT = 120.0


def advance_clock(seconds: float) -> None:
    """Advance the clock of the running event loop, so timers that are due within `seconds` fire immediately."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]
