"""A log file that is replaced when it is large, by whichever of several workers notices.

The files are those of ``logging.handlers.RotatingFileHandler``: ``server.log`` is written, ``server.log.1`` is the one
before it. That handler is for one process, though: several would each rename the file under the others.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

_LOOK_EVERY: Final = 64
"""Records between two looks at the file: another worker may have replaced it."""


class LogFile(logging.Handler):
    """Appends lines to a file that other processes append to as well."""

    def __init__(self, path: str, *, max_bytes: int, count: int) -> None:
        """Open the file; its folder is made when it isn't there.

        Args:
            path: the file.
            max_bytes: it is replaced when it is larger, by a few lines at most.
            count: older files that are kept.

        Raises:
            OSError: the file cannot be written.
        """
        super().__init__()
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._count = count
        self._until_look = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        return os.open(self._path, flags, 0o640)  # others may read nothing: lines name clients and tools

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, by one call of the system: lines of several processes don't mix."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            self._until_look -= 1
            if self._until_look < 0:
                self._look()
            os.write(self._file, line)
        except (OSError, ValueError):
            self.handleError(record)

    def _look(self) -> None:
        """Go on in a new file, if the present one is large or not the one that has the name any more."""
        self._until_look = _LOOK_EVERY
        here = os.fstat(self._file)
        if self._has_name(here):
            if here.st_size < self._max_bytes:
                return
            with _alone(self._file):
                if self._has_name(here):
                    self._shift()
        os.close(self._file)
        self._file = self._open()

    def _has_name(self, here: os.stat_result) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _shift(self) -> None:
        files = [
            self._path,
            *(self._path.with_name(f"{self._path.name}.{number + 1}") for number in range(self._count)),
        ]
        for older, newer in zip(files[:0:-1], files[-2::-1], strict=True):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self.lock or contextlib.nullcontext():
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
        super().close()


@contextlib.contextmanager
def _alone(file: int) -> Generator[None, None, None]:
    """Of several processes that have a file open, one at a time is inside."""
    if sys.platform == "win32":  # a file that is open cannot be renamed there: one process writes it
        yield
        return
    import fcntl  # noqa: PLC0415  not everywhere

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
