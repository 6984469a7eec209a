"""A worker from its parent's perspective: a process, a connection to it, and its state.

Restart delays of workers, so that a crash loop doesn't consume the machine.

The command line that starts this program again, for workers, which are distinguished by an environment variable.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from millstream._app.server_process.errors import CommandError
from millstream._app.server_process.workers.slot import (
    BEATS,
    FOR_PARENT,
    VARIABLE,
    Alive,
    Drain,
    Force,
    Hello,
    MessageChannel,
    Ready,
    StartFailure,
    WorkerStates,
)
from millstream._override import override

FIRST = 0.5
LONGEST = 30.0
WELL = 5.0
"""Seconds of service after which a worker counts as healthy, which resets the delay. A start takes about one second of
a core, which bounds the load of a crash loop.
"""


class BackOff:
    """The restart delays of one worker: none for the first crash of a healthy one, then growing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        """When the newest process began to serve; the time before that says nothing about its health."""
        self._deaths = 0

    def serves(self) -> None:
        """Record that a process serves from now on."""
        self._since = self._clock()

    def record_death(self) -> float:
        """Record that the process has ended, and return the seconds to wait before the next one."""
        if self._since is not None and self._clock() - self._since >= WELL:
            self._deaths = 0
        self._since = None
        self._deaths += 1
        return 0.0 if self._deaths == 1 else min(LONGEST, FIRST * 2.0 ** (self._deaths - 2))


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
            why="This program isn't in a file. It was typed in, or came from standard input.",
            fix="Put it into a file and start that file.",
        )
    if file is not None and spec is None:
        # The program may have changed its directory since; Python has made the file name absolute.
        name = Path(file).name
        place = next((index for index, each in enumerate(arguments) if Path(each).name == name), None)
        if place is not None:
            arguments[place] = str(Path(file).absolute())
    return [sys.executable, *arguments]


STARTING, READY, LEAVING, GONE = "starting", "ready", "leaving", "gone"
PATIENCE = 30.0
"""Seconds for a process that hasn't said how long it may take to exit."""


_BY_OTHERS = frozenset((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""Signals of a person, or of the kernel for lack of memory. Other signals are the program's own fault."""


KILLED = "Another process killed it, or the kernel for lack of memory."


class NotStarted(Exception):
    """A worker has ended before it served, with or without an error message."""

    def __init__(self, error: CommandError, *, killed: bool = False) -> None:
        super().__init__(error.what)
        self.error = error
        self.killed = killed
        """Whether it was killed from outside, so its program may be fine."""


class WorkerProcess:
    """One process. Its replacement is another object."""

    def __init__(
        self,
        command: Sequence[str],
        hello: Hello,
        *,
        environment: Mapping[str, str],
    ) -> None:
        """Start the process.

        Args:
            command: Program that becomes a worker through what it inherits.
            hello: Its role.
            environment: Environment variables in addition to the parent's.
        """
        self._loop = asyncio.get_running_loop()
        self.hello = hello
        self.state = STARTING
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self.left = asyncio.Event()
        """Set when it accepts no more connections."""
        self.ended: asyncio.Future[int] = self._loop.create_future()
        """Exit status, negative for a signal."""
        self.leaves = False
        """Whether it's stopping, and has been replaced if necessary."""
        self.patience = PATIENCE
        self.watchdog = 0.0
        self.heard = 0.0
        """Time of the last heartbeat of its event loop."""
        self._failed: StartFailure | None = None
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
        self._line = MessageChannel(ours, FOR_PARENT)
        self._line.tell(hello)
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._hear)
        # asyncio's own waiting needs a child watcher on Python 3.11, which the program may have replaced.
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        status = self._process.wait()
        with suppress(RuntimeError):  # the loop was ended by force
            self._loop.call_soon_threadsafe(self._end, status)

    def _hear(self) -> None:
        messages = self._line.read()
        if messages is None:
            self._loop.remove_reader(self._line.end.fileno())
            return
        for message in messages:
            if isinstance(message, Ready):
                self.state, self.patience, self.watchdog = READY, message.patience, message.watchdog
                self.heard = self._loop.time()
                self._ready.set_result(message)
            elif isinstance(message, Alive):
                self.heard = self._loop.time()
            elif isinstance(message, StartFailure):
                self._failed = message
            else:
                self.state, self.leaves = LEAVING, True
                self.left.set()

    def _end(self, status: int) -> None:
        self._hear()  # its last messages
        self._loop.remove_reader(self._line.end.fileno())
        self._line.end.close()
        self.state, self.leaves = GONE, True
        self.left.set()
        if not self._ready.done():
            killed = self._failed is None and -status in _BY_OTHERS
            self._ready.set_exception(NotStarted(self._why(status, killed=killed), killed=killed))
            self._ready.exception()  # avoids a warning if there's no waiter
        self.ended.set_result(status)

    async def ready(self) -> Ready:
        """Wait until it serves. Several callers may wait, and each may be canceled separately.

        Raises:
            NotStarted: It ended before.
        """
        return await asyncio.shield(self._ready)

    def _why(self, status: int, *, killed: bool) -> CommandError:
        if self._failed is not None:
            failed = self._failed
            return CommandError(failed.what, why=failed.why, fix=failed.fix, detail=failed.detail)
        return CommandError(
            f"Worker {self.hello.worker} {how(status)} before it served.",
            why=KILLED if killed else "A worker runs your program up to run(). See its output above.",
        )

    async def stands_still(self) -> bool:
        """Wait while its event loop responds. Return True once it has been silent for too long, and False when it
        stops.
        """
        late = 0
        while self.state == READY:
            await asyncio.sleep(self.watchdog / BEATS)
            # Twice in a row: if this process itself was stopped, messages from that time must be read first.
            late = late + 1 if self._loop.time() - self.heard > self.watchdog else 0
            if late == 2:
                return self.state == READY
        return False

    def drain(self, *, replaced: bool) -> None:
        """Let it finish running calls, and exit."""
        if self.state == GONE:
            return
        self.leaves = True
        if self.state == STARTING:
            self.signal(signal.SIGTERM)  # it may not read our messages yet
        self._line.tell(Drain(replaced))

    def force(self) -> None:
        """Make it exit at once, but cleanly."""
        if self.state != GONE:
            self.leaves = True
            self._line.tell(Force())

    def tell(self, message: WorkerStates | StartFailure) -> None:
        """Send it the state of all workers, or why the changed program can't start."""
        if self.state in (READY, LEAVING):
            self._line.tell(message)

    def signal(self, number: int) -> None:
        """Send a signal, if it's still running."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    @override
    def __str__(self) -> str:
        return f"Worker {self.hello.worker} (process {self.pid})"


def how(status: int) -> str:
    """Return how a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
