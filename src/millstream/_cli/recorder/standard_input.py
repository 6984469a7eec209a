"""Lines of standard input for an event loop, on all systems, with backpressure."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator

from millstream._protocol.lines import LineSplitter

MAX_LINE = 64 * 1024 * 1024
"""Maximum bytes of a line; longer ones aren't valid messages."""


async def lines() -> AsyncIterator[bytes]:
    """Yield each line without its end, skipping blank and overlong lines."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(16)
    descriptor = sys.stdin.fileno()

    def read() -> None:
        # Unbuffered, because the lock of a buffered reader would block the program's exit.
        data = b" "
        while data:
            try:
                data = os.read(descriptor, 65536)
            except OSError:
                data = b""
            try:
                asyncio.run_coroutine_threadsafe(queue.put(data), loop).result()
            except RuntimeError:
                return  # the loop is closed

    threading.Thread(target=read, daemon=True).start()
    splitter = LineSplitter(MAX_LINE)
    while data := await queue.get():
        for line in splitter.feed(data):
            if line is not None:
                yield line
    for line in splitter.end():
        if line is not None:
            yield line


async def write_stdout(data: bytes) -> None:
    """Write to standard output. A slow reader blocks a thread, not the loop."""

    def write() -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    await asyncio.to_thread(write)
