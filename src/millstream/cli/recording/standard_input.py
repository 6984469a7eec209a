"""Lines of standard input for an event loop, on every system; one after the other, so that a fast writer waits."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator

MAX_LINE = 64 * 1024 * 1024


async def lines() -> AsyncIterator[bytes]:
    """Each line with its end, until there are no more; one that's too long ends them, too."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(16)

    def read() -> None:
        while True:
            line = sys.stdin.buffer.readline(MAX_LINE)
            try:
                asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()
            except RuntimeError:
                return  # the loop is closed
            if not line:
                return

    threading.Thread(target=read, daemon=True).start()
    while line := await queue.get():
        yield line


async def say(line: bytes) -> None:
    """Write to standard output; a reader who is slow blocks a thread, not the loop."""

    def write() -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    await asyncio.to_thread(write)
