"""Imports without the garbage collector, for commands that people wait for."""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Generator[None]:
    """Pause the garbage collector in the block, and exclude what was imported from later collections.

    Hundreds of modules are 65,000 objects. Scanning them repeatedly takes a fifth of a server's start-up time, and
    finds almost nothing. Use it only for our own modules, because a program may create garbage during its import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
