"""A worker's place: how a process finds out that it's one, and its line to the parent.

A worker is started with the command line of its parent, so everything in between is as it was there: the interpreter's
options, the arguments, the user's own code. What makes it a worker is one environment variable, which names an
inherited socket and says which one that must be: a program that a worker starts has the variable perhaps, the socket
never, and so it's nobody's worker.
"""

import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

from millstream._app.serving.errors import CommandError
from millstream._app.serving.workers.messages import FOR_WORKER, Failed, Hello, Line, Seat
from millstream._stores.parent import use_parent

VARIABLE = "_MILLSTREAM_WORKER"
"""No setting, hence the underscore."""


class WorkerSlot:
    """What the parent has said, and how to answer."""

    __slots__ = ("early", "hello", "line", "seats")

    def __init__(self, end: socket.socket) -> None:
        self.line = Line(end, FOR_WORKER)
        first = self.line.read()
        while first == []:
            first = self.line.read()
        if not first or not isinstance(first[0], Hello):
            raise SystemExit(1)  # the parent is gone
        self.hello = first[0]
        self.early = first[1:]
        """What came with it."""
        self.die_with_parent(True)
        self.seats: list[Seat] = []
        """How all workers are."""

    def die_with_parent(self, on: bool) -> None:
        """Whether the kernel ends this process when the line does, or says anything. A program that hangs while it's
        imported hears nothing itself, and would keep the port from the next parent for ever.
        """
        import fcntl  # noqa: PLC0415  workers are processes of POSIX

        end = self.line.end
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(end, fcntl.F_GETFL)
        fcntl.fcntl(end, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)

    @contextmanager
    def reporting(self) -> Generator[None, None, None]:
        """What cannot be done inside the block is for the parent to show.

        Raises:
            SystemExit: something cannot be done.
        """
        try:
            yield
        except CommandError as exc:
            self.line.tell(Failed(exc.what, exc.why, exc.fix, exc.detail))
            sys.exit(1)

    def mark_logs(self) -> None:
        """Every line of a log says which worker wrote it."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._mark)

    def _mark(self, record: logging.LogRecord) -> bool:
        if self.hello.workers > 1:
            record.worker = self.hello.worker
        return True


class _ClaimedSlot:
    place: WorkerSlot | None = None
    runs = 0
    """How often this process has begun to serve over HTTP."""


def begin_run() -> int:
    """Count a ``run()``: a worker serves for the same one as its parent."""
    _ClaimedSlot.runs += 1
    return _ClaimedSlot.runs


def claim() -> WorkerSlot | None:
    """The place of this process; None where nobody supervises it."""
    text = os.environ.pop(VARIABLE, "")
    if text:
        descriptor, _, inode = text.partition(":")
        end = _inherited(int(descriptor), int(inode))
        if end is not None:
            _leave_signals_to_the_parent()
            _ClaimedSlot.place = place = WorkerSlot(end)
            if place.hello.store:
                use_parent(place.hello.store)
    return _ClaimedSlot.place


def _leave_signals_to_the_parent() -> None:
    """It decides what follows from Ctrl-C, and from the end of a terminal."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _inherited(descriptor: int, inode: int) -> socket.socket | None:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return None
    if not stat.S_ISSOCK(info.st_mode) or info.st_ino != inode:
        return None
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
