"""Pass printed lines to a log handler, in addition to the original streams. For development, because it slows down each
print."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

_MAX_LINE = 8192
"""Maximum characters of a line. The rest becomes another line."""


def capture_prints(listener: logging.Handler) -> Callable[[], None]:
    """Pass each line printed to standard output and standard error to a handler. Return a function that stops it.

    Records have the level INFO, and ``stdout`` or ``stderr`` as the logger name. Existing log handlers keep the
    original streams, so their lines don't appear twice.
    """
    before = sys.stdout, sys.stderr
    after = cast("TextIO", _Tee(before[0], "stdout", listener)), cast("TextIO", _Tee(before[1], "stderr", listener))
    sys.stdout, sys.stderr = after

    def restore() -> None:
        if sys.stdout is after[0]:
            sys.stdout = before[0]
        if sys.stderr is after[1]:
            sys.stderr = before[1]

    return restore


class _Tee:
    """A text stream that also turns written lines into log records."""

    def __init__(self, stream: TextIO, name: str, listener: logging.Handler) -> None:
        self._stream = stream
        self._name = name
        self._listener = listener
        self._rest = ""

    def write(self, text: str) -> int:
        """Write, and pass on complete lines."""
        written = self._stream.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > _MAX_LINE:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            if line.strip():
                self._listener.handle(logging.LogRecord(self._name, logging.INFO, "", 0, line, None, None))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
