"""Non-blocking text output to a stream with a slow or stalled reader."""

import contextlib
import os
import select
import stat
from typing import TextIO

MAX_KEPT = 256 * 1024
"""Maximum bytes that wait for a slow reader. More are dropped."""
_PIECE = 4096
"""A writable pipe accepts this many bytes without blocking (`PIPE_BUF` of POSIX)."""
LAST_MS = 1000


class TextOutlet:
    """Writes to a stream and buffers what the reader doesn't take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = -1
        self._poll: select.poll | None = None
        """None if writing doesn't block: for files and in-memory streams, and on Windows, where this can't be
        checked.
        """
        self.unsent = b""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                self._poll = select.poll()
                self._poll.register(descriptor, select.POLLOUT)
                self._descriptor = descriptor

    def write(self, text: str, *, wait_ms: int = 0) -> bool:
        """Write `text`, or keep it for later if the stream blocks for more than `wait_ms`. Return False if it was lost.

        Raises:
            OSError, ValueError: The reader is gone, or the stream is closed.
        """
        if self._poll is None:
            self._stream.write(text)
            self._stream.flush()
            return True
        data = text.encode(errors="backslashreplace")
        taken = len(self.unsent) + len(data) <= MAX_KEPT
        rest = memoryview(self.unsent + data if taken else self.unsent)
        self.unsent = b""
        while rest and self._poll.poll(wait_ms):
            rest = rest[os.write(self._descriptor, rest[:_PIECE]) :]
        self.unsent = bytes(rest)
        return taken
