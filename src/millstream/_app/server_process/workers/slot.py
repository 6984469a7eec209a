"""A worker's slot: how a process detects that it's a worker, and its connection to the parent.

A worker is started with the command line of its parent, so everything up to serving is the same: the interpreter's
options, the arguments, the user's code. An environment variable names an inherited socket and identifies it. Programs
that a worker starts may inherit the variable, but never the socket, so they aren't workers.
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

from millstream._app.server_process.errors import CommandError
from millstream._app.server_process.workers.messages import FOR_WORKER, Hello, MessageChannel, StartFailure, WorkerState
from millstream._stores.parent import use_parent

VARIABLE = "_MILLSTREAM_WORKER"
"""Not a setting, hence the underscore."""


class WorkerSlot:
    """The parent's messages, and the connection for replies."""

    def __init__(self, end: socket.socket) -> None:
        self.line = MessageChannel(end, FOR_WORKER)
        first = self.line.read()
        while first == []:
            first = self.line.read()
        if not first or not isinstance(first[0], Hello):
            raise SystemExit(1)  # the parent is gone
        self.hello = first[0]
        self.early = first[1:]
        """Descriptors that were passed along."""
        self.die_with_parent(True)
        self.seats: list[WorkerState] = []
        """State of all workers."""

    def die_with_parent(self, on: bool) -> None:
        """Have the kernel end this process when the parent closes the connection or sends a message, because a program
        that hangs during its import can't react, and would block the port forever.
        """
        import fcntl  # noqa: PLC0415  workers are processes of POSIX

        end = self.line.end
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(end, fcntl.F_GETFL)
        fcntl.fcntl(end, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)

    @contextmanager
    def report_errors(self) -> Generator[None, None, None]:
        """Report errors inside the block to the parent, which shows them.

        Raises:
            SystemExit: there was an error.
        """
        try:
            yield
        except CommandError as exc:
            self.line.tell(StartFailure(exc.what, exc.why, exc.fix, exc.detail))
            sys.exit(1)

    def mark_logs(self) -> None:
        """Add the worker's name to every log line."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._mark)

    def _mark(self, record: logging.LogRecord) -> bool:
        if self.hello.workers > 1:
            record.worker = self.hello.worker
        return True


class _ClaimedSlot:
    place: WorkerSlot | None = None
    runs = 0
    """Number of times that this process has begun to serve over HTTP."""


def begin_run() -> int:
    """Count a ``run()`` call, because a worker serves the same one as its parent."""
    _ClaimedSlot.runs += 1
    return _ClaimedSlot.runs


def claim() -> WorkerSlot | None:
    """Return the slot of this process; None if it isn't a worker."""
    text = os.environ.pop(VARIABLE, "")
    if text:
        descriptor, _, inode = text.partition(":")
        end = _inherit_socket(int(descriptor), int(inode))
        if end is not None:
            _leave_signals_to_the_parent()
            _ClaimedSlot.place = place = WorkerSlot(end)
            if place.hello.store:
                use_parent(place.hello.store)
    return _ClaimedSlot.place


def _leave_signals_to_the_parent() -> None:
    """Ignore signals of the terminal, because the parent decides how to handle Ctrl-C and the end of a terminal."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _inherit_socket(descriptor: int, inode: int) -> socket.socket | None:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return None
    if not stat.S_ISSOCK(info.st_mode) or info.st_ino != inode:
        return None
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
