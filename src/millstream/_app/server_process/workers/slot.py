"""A worker's slot: how a process detects that it's a worker, and its connection to the parent.

A worker is started with the command line of its parent, so everything up to serving is the same: the interpreter's
options, the arguments, the user's code. An environment variable names an inherited socket and identifies it. Programs
that a worker starts may inherit the variable, but never the socket, so they aren't workers.

Messages between the parent and a worker: JSON lines on a private pair of sockets.

The end of the stream is a message, too: it tells a worker that the parent is gone, for whatever reason.

The sockets that workers accept from: opened once by the parent, and kept until shutdown.

On Linux, the kernel spreads connections over sockets that share a port, so each worker has its own. Connections in a
socket's queue survive the death of its worker, because the parent holds the socket, too, and the replacement continues
with it. Elsewhere, all workers share one socket (macOS lets them share a port, but assigns all connections to one).
"""

import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from millstream._app.server_process.errors import CommandError
from millstream._app.server_process.facts import Facts
from millstream._app.server_process.listen_sockets import listen
from millstream._stores.workers import use_parent

CHUNK = 64 * 1024
BEATS = 4
"""Heartbeats of a worker per watchdog timeout."""


class WorkerMessage(Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base class of the messages, tagged with the name of the class."""


class Hello(WorkerMessage, frozen=True, kw_only=True):
    """Parent to worker, sent first: its role."""

    worker: int
    """Number of the worker, from 1. Its replacement has the same number."""
    workers: int
    host: str
    port: int
    listeners: list[int]
    """Descriptors of the sockets that it accepts from."""
    others: dict[int, list[int]] = {}
    """Descriptors of the sockets that the other workers accept from, by worker."""
    run: int
    """Number of the ``run()`` call that the worker serves, from 1."""
    reloads: bool = False
    """Whether a developer's changes restart the workers."""
    key: str
    """Secret shared by all workers, for programs without one."""
    store: str = ""
    """Address of the parent's store, if it serves one."""


class Drain(WorkerMessage, frozen=True):
    """Parent to worker: finish running calls, and exit."""

    replaced: bool = False
    """Whether another process already accepts from the same socket."""


class Force(WorkerMessage, frozen=True):
    """Parent to worker: exit now."""


class WorkerState(Struct, frozen=True):
    """One worker, as shown by `/health`."""

    worker: int
    pid: int
    state: str
    restarts: int
    """Number of times that it died and was replaced."""


class WorkerStates(WorkerMessage, frozen=True):
    """Parent to worker: the state of all workers, whenever it changes."""

    seats: list[WorkerState]


class Ready(WorkerMessage, frozen=True):
    """Worker to parent: it accepts connections."""

    facts: Facts
    patience: float
    """Maximum seconds for it to exit after a stop request."""
    watchdog: float = 0.0
    """Seconds without a heartbeat after which it's killed; 0 for never."""


class Alive(WorkerMessage, frozen=True):
    """Worker to parent, periodically with a watchdog: its event loop is running."""


class Departure(WorkerMessage, frozen=True):
    """Worker to parent: it's exiting, and accepts no more connections."""


class StartFailure(WorkerMessage, frozen=True):
    """Worker to parent: it can't start. Parent to worker: the changed program can't; empty once it has changed again.

    Contains the parts of a `CommandError`.
    """

    what: str
    why: str = ""
    fix: str = ""
    detail: str = ""


ToWorker = Hello | Drain | Force | WorkerStates | StartFailure
ToParent = Ready | Alive | Departure | StartFailure
FOR_WORKER: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
FOR_PARENT: msgspec.json.Decoder[ToParent] = msgspec.json.Decoder(ToParent)
Heard = TypeVar("Heard")


class MessageChannel(Generic[Heard]):
    """One end of the pair of sockets."""

    def __init__(self, end: socket.socket, decoder: msgspec.json.Decoder[Heard]) -> None:
        self.end = end
        self._decoder = decoder
        self._buffer = b""

    def tell(self, message: Any) -> None:
        """Send a message, dropping it if the peer is gone or has been unresponsive for long."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self.end.sendall(msgspec.json.encode(message) + b"\n")

    def read(self) -> list[Heard] | None:
        """Return the messages received so far; None if the peer has closed the socket or sent an invalid message."""
        try:
            data = self.end.recv(CHUNK)
            if not data:
                return None
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            return [self._decoder.decode(each) for each in lines]
        except BlockingIOError:
            return []
        except (ConnectionResetError, msgspec.MsgspecError):
            return None


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
            SystemExit: There was an error.
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
    failure: StartFailure | None = None
    runs = 0
    """Number of times that this process has begun to serve over HTTP."""


def begin_run() -> int:
    """Count a ``run()`` call, because a worker serves the same one as its parent."""
    _ClaimedSlot.runs += 1
    return _ClaimedSlot.runs


def note_failure(failure: StartFailure) -> None:
    """Record why the changed program can't start, or with an empty one, that it has changed again."""
    _ClaimedSlot.failure = failure if failure.what else None


def failed_restart() -> StartFailure | None:
    """Return why the changed program can't start; None if there's no newer version."""
    return _ClaimedSlot.failure


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


logger = logging.getLogger("millstream")

SPREADS = sys.platform == "linux"
"""Whether the kernel spreads connections over several sockets of one port."""


def open_sockets(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return sockets for the workers: one for each, or fewer, which they share.

    Raises:
        CommandError: The address or port can't be used.
    """
    if workers == 1 or not SPREADS:
        if workers > 1:
            logger.info(
                "All workers accept from one socket on this platform, so some may get more connections than others."
            )
        return [listen(host, port)]
    # An unshared bind detects existing listeners; a shared one keeps the port that the kernel has picked.
    with listen(host, port, shared=not port) as first:
        if port:
            first.close()
        else:
            port = first.getsockname()[1]
        return [listen(host, port, shared=True) for _ in range(workers)]
