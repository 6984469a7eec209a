"""A worker as its parent sees it: a process, a line to it, and where it's on its way."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from millstream._app.serving.errors import CommandError
from millstream._app.serving.workers.messages import (
    BEATS,
    FOR_PARENT,
    Alive,
    Drain,
    Failed,
    Force,
    Hello,
    Line,
    Ready,
    Roster,
)
from millstream._app.serving.workers.slot import VARIABLE

STARTING, READY, LEAVING, GONE = "starting", "ready", "leaving", "gone"
PATIENCE: Final = 30.0
"""Seconds for one that has not said how long it may take to end."""


_BY_OTHERS = frozenset((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
"""How a person or the kernel, short of memory, ends a process. Whatever else kills one is the program's own."""


class NotStarted(Exception):
    """A worker has ended before it served; it has said why, or nothing."""

    def __init__(self, error: CommandError, *, killed: bool = False) -> None:
        super().__init__(error.what)
        self.error = error
        self.killed = killed
        """Somebody else has ended it, and its program may be fine."""


class WorkerProcess:
    """One process. Its replacement is another object."""

    def __init__(
        self,
        command: Sequence[str],
        hello: Hello,
        *,
        environment: Mapping[str, str],
        on_left: "Callable[[WorkerProcess], None]",
    ) -> None:
        """Start it.

        Args:
            command: a program that becomes a worker by what it inherits.
            hello: what it's to be.
            environment: variables beside the parent's own.
            on_left: called when it accepts no more.
        """
        self._loop = asyncio.get_running_loop()
        self.hello = hello
        self.state = STARTING
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self.left = asyncio.Event()
        """It accepts no more."""
        self.ended: asyncio.Future[int] = self._loop.create_future()
        """Its exit status, negative for a signal."""
        self.leaves = False
        """It has its orders, or ends by itself, and is replaced already if it has to be."""
        self.patience = PATIENCE
        self.watchdog = 0.0
        self.heard = 0.0
        """When its event loop last said that it goes on."""
        self._on_left = on_left
        self._failed: Failed | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(  # noqa: S603  the command of this very program
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(number, *hello.listeners, *(each for numbers in hello.others.values() for each in numbers)),
                env={**os.environ, **environment, VARIABLE: f"{number}:{os.fstat(number).st_ino}"},
                # Ctrl-C is a signal to the whole group of a terminal; only the parent decides what follows from it.
                process_group=0,
            )
        self.pid = self._process.pid
        self._line = Line(ours, FOR_PARENT)
        self._line.tell(hello)
        ours.setblocking(False)
        self._loop.add_reader(ours.fileno(), self._hear)
        # Not asyncio's way to wait: on Python 3.11 that needs a child watcher, which the program may have replaced.
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
            elif isinstance(message, Failed):
                self._failed = message
            else:
                self.state = LEAVING
                self.left.set()
                self._on_left(self)

    def _end(self, status: int) -> None:
        self._hear()  # its last words
        self._loop.remove_reader(self._line.end.fileno())
        self._line.end.close()
        self.state = GONE
        self.left.set()
        if not self._ready.done():
            killed = self._failed is None and -status in _BY_OTHERS
            self._ready.set_exception(NotStarted(self._why(status), killed=killed))
            self._ready.exception()  # nobody has to look
        self.ended.set_result(status)

    async def ready(self) -> Ready:
        """Wait until it serves. Several may wait, and each may give up by itself.

        Raises:
            NotStarted: it has ended before.
        """
        return await asyncio.shield(self._ready)

    def _why(self, status: int) -> CommandError:
        if self._failed is not None:
            failed = self._failed
            return CommandError(failed.what, why=failed.why, fix=failed.fix, detail=failed.detail)
        return CommandError(
            f"Worker {self.hello.worker} {how(status)} before it served.",
            why="A worker runs your program up to run(). What it wrote stands above.",
        )

    async def stands_still(self) -> bool:
        """Wait while its event loop goes on. True once it has said nothing for too long; False when it leaves."""
        late = 0
        while self.state == READY:
            await asyncio.sleep(self.watchdog / BEATS)
            # Twice in a row: if this process stood still itself, what was said meanwhile has to be read first.
            late = late + 1 if self._loop.time() - self.heard > self.watchdog else 0
            if late == 2:
                return self.state == READY
        return False

    def drain(self, *, replaced: bool) -> None:
        """Let it finish what it has, and end."""
        if self.state == GONE:
            return
        self.leaves = True
        if self.state == STARTING:
            self.signal(signal.SIGTERM)  # it may not listen to us yet
        self._line.tell(Drain(replaced))

    def force(self) -> None:
        """Let it end at once, in order."""
        if self.state != GONE:
            self.leaves = True
            self._line.tell(Force())

    def tell(self, roster: Roster) -> None:
        """How all workers are."""
        if self.state in (READY, LEAVING):
            self._line.tell(roster)

    def signal(self, number: int) -> None:
        """Send a signal, if there's still somebody."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def __str__(self) -> str:
        return f"Worker {self.hello.worker} (process {self.pid})"


def how(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
