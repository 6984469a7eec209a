"""Loading without the garbage collector, for a command that somebody waits for."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Generator[None]:
    """Load in the block what lives as long as the process: the collector looks for no garbage in it, now or later.

    Hundreds of modules are 65,000 objects. Looking through them again and again takes a fifth of what a server's start
    takes, and finds next to nothing. That's for our own modules: a program may well leave garbage while it's imported.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
