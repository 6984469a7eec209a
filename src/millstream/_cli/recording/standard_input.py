"""Lines of standard input for an event loop, on every system; one after the other, so that a fast writer waits."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator

from millstream._protocol.lines import LineSplitter

MAX_LINE = 64 * 1024 * 1024
"""What is longer isn't a message that anybody takes."""


async def lines() -> AsyncIterator[bytes]:
    """Each line without its end, until there are no more; blank ones, and those that are too long, are left out."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(16)
    descriptor = sys.stdin.fileno()

    def read() -> None:
        # Not the buffered reader: its lock would be in the way when the program ends while this thread waits.
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


async def say(line: bytes) -> None:
    """Write to standard output; a reader who is slow blocks a thread, not the loop."""

    def write() -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    await asyncio.to_thread(write)
