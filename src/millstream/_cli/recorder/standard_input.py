"""Lines of standard input for an event loop, on all systems, with backpressure."""

import asyncio
import sys
from collections.abc import AsyncIterator

from millstream._protocol.lines import LineSplitter
from millstream._transports.stdio import open_reader

MAX_LINE = 64 * 1024 * 1024
"""Maximum bytes of a line; longer ones aren't valid messages."""


async def lines() -> AsyncIterator[bytes]:
    """Yield each line without its end, skipping blank and overlong lines."""
    read, close = await open_reader(0)
    splitter, data = LineSplitter(MAX_LINE), b"-"
    try:
        while data:
            data = await read(65536)
            for line in splitter.feed(data) if data else splitter.end():
                if line is not None:
                    yield line
    finally:
        close()


async def write_stdout(data: bytes) -> None:
    """Write to standard output. A slow reader blocks a thread, not the loop."""

    def write() -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    await asyncio.to_thread(write)
