"""Both ends of the connection between worker processes and the parent.

A worker is started with the command line of its parent, so everything up to serving is the same: the interpreter's
options, the arguments, the user's code. An environment variable names an inherited socket and identifies it. Programs
that a worker starts may inherit the variable, but never the socket, so they aren't workers.

Over this private pair of sockets, both sides send messages as JSON lines.
"""

import asyncio
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from millstream._app.server_process import CommandError
from millstream._app.server_process.listen_sockets import listen
from millstream._app.server_process.startup_message import Facts
from millstream._confidential import Confidential
from millstream._config import ConfigVersion
from millstream._http.hosts import UNIX
from millstream._override import override
from millstream._stores.workers import use_parent
from millstream._tasks import Tasks, retry_delay, run_in_thread

logger = logging.getLogger("millstream")

CHUNK = 64 * 1024
BEATS = 4
"""Heartbeats of a worker per watchdog timeout."""


STARTING, READY, LEAVING, GONE = "starting", "ready", "leaving", "gone"


class WorkerMessage(Struct, frozen=True, tag_field="type", tag=str.lower):
    """Base class of the messages, tagged with the name of the class."""


class Hello(Confidential, WorkerMessage, frozen=True, kw_only=True):
    """Parent to worker, sent first: the worker's role."""

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
    config: ConfigVersion | None = None
    """Configuration of a gateway, whose file the parent watches."""


class NewConfig(WorkerMessage, frozen=True):
    """Parent to worker: prepare a version of the configuration file."""

    version: ConfigVersion


class ConfigPrepared(WorkerMessage, frozen=True):
    """Worker to parent: it has prepared the version, or has started with it and waits until it's told to serve."""

    number: int
    error: str
    """Why it can't be used, or empty if it can."""


class ConfigState(WorkerMessage, frozen=True):
    """Parent to worker: use the version with this number, which has been prepared, and serve."""

    number: int
    refusal: str
    """Why the file's last version isn't in force, or empty if it is."""


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
    deaths: int = 0
    """Number of times that it died in a row, before or shortly after it served."""


class WorkerStates(WorkerMessage, frozen=True):
    """Parent to worker: the state of all workers, whenever it changes."""

    workers: list[WorkerState]


class Ready(WorkerMessage, frozen=True):
    """Worker to parent: it accepts connections."""

    facts: Facts
    patience: float
    """Maximum seconds for it to exit after a stop request."""
    watchdog: float = 0.0
    """Seconds without a heartbeat after which it's killed, or 0 for never."""


class Alive(WorkerMessage, frozen=True):
    """Worker to parent, periodically with a watchdog: its event loop is running."""


class Departure(WorkerMessage, frozen=True):
    """Worker to parent: it's exiting, and accepts no more connections."""


class StartFailure(WorkerMessage, frozen=True):
    """Worker to parent: it can't start. Parent to worker: the changed program can't; empty when it has changed again.

    Contains the parts of a `CommandError`.
    """

    what: str
    why: str = ""
    fix: str = ""
    detail: str = ""


Message = (
    Hello
    | Drain
    | Force
    | WorkerStates
    | Ready
    | Alive
    | Departure
    | StartFailure
    | NewConfig
    | ConfigPrepared
    | ConfigState
)
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class MessageChannel:
    """One end of the socket pair.

    The end of the stream tells a worker that the parent has exited, for whatever reason.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self._buffer = b""
        self._unsent = bytearray()

    def send(self, message: Message) -> None:
        """Send a message, in the background if the peer doesn't read it yet. It's dropped if the peer has
        disconnected.
        """
        self._unsent += msgspec.json.encode(message) + b"\n"
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.end.send(self._unsent)]
        except BlockingIOError:
            asyncio.get_running_loop().add_writer(self.end, self._flush)
            return
        except OSError:
            self._unsent.clear()
        with suppress(RuntimeError):  # no loop runs while a worker starts
            asyncio.get_running_loop().remove_writer(self.end)

    def close(self) -> None:
        """Close the socket."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.end)
        loop.remove_writer(self.end)
        self.end.close()

    def read(self) -> list[Message] | None:
        """Return the messages received so far, or None if the peer has closed the socket or sent an invalid message."""
        try:
            data = self.end.recv(CHUNK)
            if not data:
                return None
            lines, _, self._buffer = (self._buffer + data).rpartition(b"\n")
            return _decoder.decode_lines(lines)
        except BlockingIOError:
            return []
        except (ConnectionResetError, msgspec.MsgspecError):
            return None


Accept = Callable[[socket.socket], Awaitable[Callable[[], None]]]
"""Accepts from one more socket; returns a function that stops it."""


class SocketTakeover:
    """Accepts connections for a dead worker until its replacement is ready.

    The kernel keeps assigning a share of new connections to the socket of a dead worker, because the parent holds it
    open. They would wait while a process starts. Every worker therefore has the sockets of all others, and the next
    serving one accepts from them until the replacement does.
    """

    def __init__(self, me: int, others: Mapping[int, Sequence[socket.socket]]) -> None:
        """Prepare the takeover, which `begin` starts.

        Args:
            me: Number of this worker.
            others: Sockets of each other worker.
        """
        self._me = me
        self._others = others
        self._accept: Accept | None = None
        self._wanted: frozenset[int] = frozenset()
        self._serving: dict[int, list[Callable[[], None]]] = {}
        """Number of a worker -> function that stops accepting for it."""
        self._tasks = Tasks()

    def begin(self, accept: Accept) -> None:
        """Start taking over. Called when this worker begins to serve."""
        self._accept = accept
        self._tasks.spawn_once(self._settle)

    def end(self) -> None:
        """Stop taking over. Connections accepted so far end with this worker's own sockets."""
        self._accept = None

    def close(self) -> None:
        """Close the others' sockets. As long as any process holds them, the kernel assigns connections to them."""
        self.end()
        for listener in (each for listeners in self._others.values() for each in listeners):
            listener.close()

    def look(self, workers: Collection[WorkerState]) -> None:
        """Update the state of all workers."""
        self._wanted = frozenset(place for place in self._others if stands_in(place, workers) == self._me)
        self._tasks.spawn_once(self._settle)

    async def _settle(self) -> None:
        while (accept := self._accept) is not None and self._wanted != frozenset(self._serving):
            for place in set(self._serving) - self._wanted:
                for stop in self._serving.pop(place):
                    stop()
            for place in self._wanted - set(self._serving):
                self._serving[place] = [await accept(each) for each in self._others[place]]
                logger.info("Accepting connections for worker %d until it's ready.", place)


def stands_in(place: int, workers: Collection[WorkerState]) -> int | None:
    """Return the number of the next serving worker, which accepts connections for one that isn't serving. Return None
    if that one serves.
    """
    ready = sorted({each.worker for each in workers if each.state == READY})
    if place in ready or not ready:
        return None
    return next((each for each in ready if each > place), ready[0])


VARIABLE = "_MILLSTREAM_WORKER"
"""Name of the variable. It isn't a setting, hence the underscore."""


class WorkerSlot:
    """A worker's connection to the parent, and the messages received from it."""

    def __init__(self, end: socket.socket) -> None:
        self.line = MessageChannel(end)
        while (first := self.line.read()) == []:
            pass
        if not first or not isinstance(first[0], Hello):
            raise SystemExit(1)  # the parent has exited
        self.hello = first[0]
        self.early = first[1:]
        """Messages that arrived together with the first."""
        self.die_with_parent(True)
        self.workers: list[WorkerState] = []
        """State of all workers."""
        self.failure: StartFailure | None = None
        """Why the changed program can't start, or None if no restart has failed."""
        others = {number: [take_socket(each) for each in sockets] for number, sockets in self.hello.others.items()}
        self.takeover = SocketTakeover(self.hello.worker, others)

    def die_with_parent(self, on: bool) -> None:
        """Have the kernel end this process when the parent closes the connection or sends a message, because a program
        that hangs during its import can't react, and would block the port forever.
        """
        import fcntl  # noqa: PLC0415  workers are processes of POSIX

        end = self.line.end
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC if on else 0)

    @contextmanager
    def report_errors(self) -> Generator[None]:
        """Report a `CommandError` inside the block to the parent, which shows it.

        Raises:
            SystemExit: There was one.
        """
        try:
            yield
        except CommandError as exc:
            self.line.send(msgspec.convert(exc, StartFailure, from_attributes=True))
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


def failed_restart() -> StartFailure | None:
    """Return why the changed program can't start, or None if no restart has failed."""
    return None if _ClaimedSlot.place is None else _ClaimedSlot.place.failure


def claim() -> WorkerSlot | None:
    """Return the number of this worker, or None if it isn't a worker."""
    text = os.environ.pop(VARIABLE, "")
    if text:
        descriptor, _, inode = text.partition(":")
        if _is_socket(int(descriptor), int(inode)):
            if threading.current_thread() is threading.main_thread():
                # The parent decides how to handle Ctrl-C and the end of a terminal.
                for name in ("SIGINT", "SIGHUP"):
                    signal.signal(getattr(signal, name), signal.SIG_IGN)
            _ClaimedSlot.place = place = WorkerSlot(take_socket(int(descriptor)))
            if place.hello.store:
                use_parent(place.hello.store)
    return _ClaimedSlot.place


def _is_socket(descriptor: int, inode: int) -> bool:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return False
    return stat.S_ISSOCK(info.st_mode) and info.st_ino == inode


def take_socket(descriptor: int) -> socket.socket:
    """Return an inherited socket, and don't pass it to the programs that this one starts."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


SPREADS = sys.platform == "linux"
"""Whether the kernel spreads connections over several sockets of one port."""


def open_sockets(host: str, port: int, workers: int) -> list[socket.socket]:
    """Return sockets for the workers: one for each, or fewer, which they share. The parent keeps them until shutdown.

    On Linux, the kernel spreads connections over sockets that share a port, so each worker has its own. Connections in
    a socket's queue survive the death of its worker, because the parent also holds the socket, and the replacement
    continues with it. Elsewhere, and at a UNIX socket, all workers share one socket (macOS lets them share a port, but
    assigns all connections to one).

    Raises:
        CommandError: The address or port can't be used.
    """
    if workers == 1 or not SPREADS or host.startswith(UNIX):
        if workers > 1 and not SPREADS:
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


FIRST = 0.5
LONGEST = 30.0
WELL = 5.0
"""Seconds of service after which a worker is treated as healthy, which resets the restart delay. A start takes about
one second of a core, which bounds the load of a crash loop.
"""


def own_command() -> list[str]:
    """Return the interpreter, its options, and the program's arguments, as they were given.

    Raises:
        CommandError: The program isn't in a file that could run again.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    _, *arguments = sys.orig_argv
    if file is None and spec is None and "-c" not in arguments:
        raise CommandError(
            "Several workers require a program that can be started again.",
            why="This program isn't in a file. It was typed in, or read from standard input.",
            fix="Save it in a file and run the file.",
        )
    if file is not None and spec is None:
        # The program may have changed its directory since; Python has made the file name absolute.
        name = Path(file).name
        place = next((index for index, each in enumerate(arguments) if Path(each).name == name), None)
        if place is not None:
            arguments[place] = str(Path(file).absolute())
    return [sys.executable, *arguments]


PATIENCE = 30.0
"""Seconds to wait for a process that hasn't reported how long it may take to exit."""
GRACE = 5.0
"""Seconds after a worker's own timeout before it's killed."""


_BY_OTHERS = frozenset((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Signals from a person, or from the kernel if memory runs out. Other signals are caused by the program."""


KILLED = "Another process killed it, or the kernel did because memory ran out."


class NotStarted(CommandError):
    """A worker has ended before it served, with or without an error message."""

    killed = False
    """Whether it was killed from outside, so its program may be fine."""


@dataclass(eq=False)
class SupervisedWorker:
    """The parts of a worker that survive the replacement of its process: the number and the sockets."""

    number: int
    listeners: Sequence[socket.socket]
    own: bool
    """Whether no other process accepts from the sockets."""
    restarts: int = 0
    deaths: int = 0
    """Number of times that it died in a row, before it served for `WELL`."""
    mending: "asyncio.Task[WorkerProcess] | None" = None
    """Task that starts a replacement."""

    def record_death(self) -> float:
        """Record that the process has ended and return the seconds to wait before the next one.

        A healthy worker's first crash causes no delay, and a crash loop a growing one.
        """
        self.deaths += 1
        return 0.0 if self.deaths == 1 else retry_delay(self.deaths - 2, FIRST, LONGEST, jitter=0)


class WorkerProcess:
    """A worker from its parent's perspective: one process, a connection to it, and its state.

    Its replacement is another object.
    """

    def __init__(
        self, command: Sequence[str], hello: Hello, worker: SupervisedWorker, *, environment: Mapping[str, str]
    ) -> None:
        """Start a worker's process.

        Args:
            command: Program that runs as a worker, with the sockets that it inherits.
            hello: Its role.
            worker: The worker that it serves as.
            environment: Environment variables in addition to the parent's.
        """
        self._loop = asyncio.get_running_loop()
        self.worker = worker
        self.state = STARTING
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self.started = asyncio.Event()
        """Set when it reads messages, and has a version of the configuration to serve. Until then, it accepts no
        connections.
        """
        self.left = asyncio.Event()
        """Set when it accepts no more connections."""
        self.patience = PATIENCE
        self.watchdog = 0.0
        self._silence = 0
        """Number of checks since the last heartbeat of its event loop."""
        self._failed: NotStarted | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603  the command of this very program
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(number, *hello.listeners, *(each for numbers in hello.others.values() for each in numbers)),
                env={**os.environ, **environment, VARIABLE: f"{number}:{os.fstat(number).st_ino}"},
                # Ctrl-C signals the whole process group of a terminal, but only the parent decides how to handle it.
                process_group=0,
            )
        self.pid = self._process.pid
        self.config_number = 0 if hello.config is None else hello.config.number
        """Version of the configuration that it uses."""
        self.prepared_number = 0
        """Version that it has prepared."""
        self._preparing: asyncio.Future[ConfigPrepared] = self._loop.create_future()
        self._line = MessageChannel(ours)
        ours.setblocking(False)
        self._line.send(hello)
        self._loop.add_reader(ours, self._hear)
        self.ended = self._loop.create_task(self._end())
        """Returns the exit status, negative for a signal."""

    def _hear(self) -> None:
        messages = self._line.read()
        if messages is None:
            self._loop.remove_reader(self._line.end)
            return
        for message in messages:
            if isinstance(message, Ready):
                if self.state == STARTING:
                    self.state = READY
                    self.started.set()
                self.patience, self.watchdog = message.patience, message.watchdog
                self._ready.set_result(message)
            elif isinstance(message, Alive):
                self._silence = 0
            elif isinstance(message, ConfigPrepared):
                if not self.started.is_set():
                    self.started.set()
                elif not self._preparing.done():
                    self._preparing.set_result(message)
            elif isinstance(message, StartFailure):
                self._failed = NotStarted(**msgspec.structs.asdict(message))
            else:
                self.state = LEAVING
                self.left.set()

    async def _end(self) -> int:
        # asyncio's own waiting needs a child watcher on Python 3.11, which the program may have replaced.
        status = await run_in_thread(self._process.wait, f"{self}")
        self._hear()  # the worker's last messages
        self._line.close()
        self.state = GONE
        self.started.set()
        self.left.set()
        self._preparing.cancel()
        if not self._ready.done():
            what = f"Worker {self.worker.number} {how(status)} before it was ready."
            error = NotStarted(what, why="A worker runs your program up to run(). See its output above.")
            if -status in _BY_OTHERS:
                error.killed, error.why = True, KILLED
            self._ready.set_exception(self._failed or error)
            self._ready.exception()  # avoids a warning if there's no waiter
        return status

    async def ready(self) -> Ready:
        """Wait until it serves. Several callers may wait, and each may be canceled separately.

        Raises:
            NotStarted: It ended before.
        """
        return await asyncio.shield(self._ready)

    async def watch(self) -> None:
        """Kill the process when its event loop has been silent for too long."""
        while not self.left.is_set():
            # Count checks instead of seconds: if this process was suspended, messages from that time must be read
            # first.
            if self._silence > BEATS:
                logger.error("%s has been unresponsive for %g s and will be killed", self, self.watchdog)
                self.signal(signal.SIGKILL)
                return
            self._silence += 1
            await asyncio.sleep(self.watchdog / BEATS)

    async def see_out(self, seconds: float) -> None:
        """Kill the process if it doesn't exit in time."""
        await asyncio.wait((self.ended,), timeout=seconds)
        if not self.ended.done():
            logger.error("%s didn't stop in time and will be killed", self)
            self.signal(signal.SIGKILL)

    def drain(self, *, replaced: bool) -> None:
        """Let the process finish running calls and exit."""
        if self.state == GONE:
            return
        if self.state == STARTING:
            self.signal(signal.SIGTERM)  # the process may not read our messages yet
        self.state = LEAVING
        self._line.send(Drain(replaced))

    def force(self) -> None:
        """Make the process exit immediately, but cleanly."""
        self._line.send(Force())

    async def prepare_config(self, version: ConfigVersion, seconds: float) -> str:
        """Let the process prepare a configuration, for at most some seconds. Return why it can't use it, or an empty
        string.
        """
        self._preparing = self._loop.create_future()
        self.send(NewConfig(version))
        await asyncio.wait((self._preparing,), timeout=seconds)
        if not self._preparing.done() or self._preparing.cancelled():
            return ""
        reply = self._preparing.result()
        if not reply.error:
            self.prepared_number = reply.number
        return reply.error

    def send(self, message: WorkerStates | StartFailure | NewConfig | ConfigState) -> None:
        """Send a message that only a process that has started reads."""
        if self.started.is_set() and self.state != GONE:
            self._line.send(message)

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still running."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    @override
    def __str__(self) -> str:
        return f"Worker {self.worker.number} (process {self.pid})"


def how(status: int) -> str:
    """Describe how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
