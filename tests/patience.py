"""How long a test waits for what must happen: the one bound of every wait, in every test.

It's a net that catches what hangs, never a measure: a machine that is five times slower than yours, or one that stands
still for some seconds (`make busy`), must see the same result.
"""

import asyncio

WAIT = 120.0


def advance_clock(seconds: float) -> None:
    """Move the clock of this loop ahead. What is timed is due at once, however slow the machine is."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]
