"""The memory that a block keeps."""

import gc
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager

MIB = 1024 * 1024


class Growth:
    """The bytes by which the process has grown in a block."""

    bytes = 0


@contextmanager
def measured() -> Generator[Growth]:
    """Measure what the block keeps."""
    growth = Growth()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield growth
        gc.collect()
        growth.bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
