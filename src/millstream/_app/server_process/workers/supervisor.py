"""The parent of several workers: it starts, restarts, and stops them.

It doesn't run user code (a script that calls ``run(workers=…)`` has run up to there). The first worker starts alone, so
that a start-up error appears once; the others follow together. A replacement accepts from the same socket before the
old worker stops, so no connection is ever refused.

Signals to the parent of workers: stop, stop at once, restart all workers.

SIGHUP has two meanings. Sent by a person who has installed a new version, it requests a restart. Sent by the kernel,
the terminal is gone, and a server started in it ends, as it does without workers.

Detection of changed files by polling, which works on every disk and needs no library.

Serving with several workers, from the command line or from ``Server.run(workers=…)``.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from millstream._app.server_process.errors import CommandError
from millstream._app.server_process.facts import Facts
from millstream._app.server_process.listen_sockets import passed_sockets
from millstream._app.server_process.panel import show
from millstream._app.server_process.runner import INTERRUPTED
from millstream._app.server_process.workers.slot import Hello, Ready, open_sockets
from millstream._app.server_process.workers.worker_pool import Slot, WorkerPool, tell_failure
from millstream._app.server_process.workers.worker_process import NotStarted, WorkerProcess, own_command
from millstream._stores import open_store
from millstream._stores.local.server import run_local_server

logger = logging.getLogger("millstream")

_STOP = [signal.SIGINT, signal.SIGTERM]


class ParentSignals:
    """Events that signals set."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        self.restart = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._had_terminal = _has_terminal()

    @contextlib.contextmanager
    def handle(self) -> "Generator[ParentSignals, None, None]":
        """Handle signals inside the block; only possible in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # `nohup` ignores SIGHUP on purpose.
        hears_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        numbers = [*_STOP, signal.SIGHUP] if hears_hangup else _STOP
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._take, number)

    def _take(self, number: int) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not _has_terminal()):
            if not self.stop.is_set():
                logger.info("Restarting all workers. The current ones stop when the new ones are ready.")
                self.restart.set()
        elif not self.stop.is_set():
            logger.info("Stopping. Press Ctrl-C again to stop immediately.")
            self.stop.set()
        elif number == signal.SIGINT and not self.force.is_set():
            logger.warning("Stopping immediately after a second Ctrl-C")
            self.force.set()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


PAUSE = 0.3
"""Seconds between two scans."""
MAX_FILES = 5_000
"""Maximum files of a folder; a folder with more isn't a single program."""
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})

Seen = dict[str, tuple[int, int]]


def changes(folder: Path) -> AsyncIterator[None]:
    """Yield when Python files below a folder have changed since now, and have stopped changing."""
    return _changes(folder, look(folder))


async def _changes(folder: Path, served: Seen) -> AsyncIterator[None]:
    before = served
    while True:
        await asyncio.sleep(PAUSE)
        now = await asyncio.to_thread(look, folder)
        if now == before != served:
            served = now
            yield
        before = now


def look(folder: Path) -> Seen:
    """Return time and size of each Python file, without installed packages."""
    seen: Seen = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not _is_foreign(Path(place, each))]
        for name in files:
            if name.endswith(".py") and len(seen) < MAX_FILES:
                path = os.path.join(place, name)  # noqa: PTH118  a Path for each of so many takes time
                try:
                    info = os.stat(path)  # noqa: PTH116  as above
                except OSError:
                    continue  # deleted in the meantime
                seen[path] = (info.st_mtime_ns, info.st_size)
    return seen


def _is_foreign(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _FOREIGN or (folder / "pyvenv.cfg").exists()


STARTS = 5
"""Maximum processes started for one slot, if all are killed, before giving up."""
OVERTAKEN = 5.0
"""Seconds that a start may still take when the next restart is requested: a hanging program must not block its fixed
version, and frequent requests must not keep a good one from getting ready.
"""


class Supervisor:
    """One run of several workers."""

    def __init__(
        self,
        command: Sequence[str],
        slots: Sequence[Slot],
        *,
        host: str,
        run: int,
        store: Callable[[], AbstractAsyncContextManager[str]],
        changes: Callable[[], AsyncIterator[None]] | None = None,
        told: Callable[[Facts], None] = show,
    ) -> None:
        """Create the supervisor; `run` starts the workers.

        Args:
            command: command that starts a worker.
            slots: one for each worker.
            host: configured address, which decides who counts as local.
            run: number of this ``run()`` call in the program.
            store: opens the shared store for the whole run, and yields its address.
            changes: yields whenever the program has changed.
            told: called once when the workers serve.
        """
        # Configuration
        self._command = command
        self._slots = slots
        self._host = host
        self._run = run
        self._changes = changes
        self._told = told
        self._store = store
        # State
        self._crew: WorkerPool
        self._chores: list[asyncio.Task[Any]] = []

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            CommandError: a worker can't start.
            SystemExit: a second signal stopped it without draining.
        """
        async with AsyncExitStack() as stack:
            orders = stack.enter_context(ParentSignals().handle())
            try:
                store = await stack.enter_async_context(self._store())
            except OSError as exc:
                raise CommandError(
                    "The workers' parent process can't create the socket of its store.",
                    why=str(exc),
                    fix="Set TMPDIR to a folder that this program may write to.",
                ) from exc
            self._crew = self._make_crew(store)
            start, stop = asyncio.create_task(self._start(orders)), asyncio.create_task(orders.stop.wait())
            self._chores += [start, stop]
            try:
                await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
                if start.done():
                    start.result()
                await stop
            finally:
                await self._end(orders)
            if orders.force.is_set():
                sys.exit(INTERRUPTED)

    def _make_crew(self, store: str) -> WorkerPool:
        hello = Hello(
            worker=0,
            workers=len(self._slots),
            host=self._host,
            port=self._slots[0].listeners[0].getsockname()[1],
            listeners=[],
            run=self._run,
            key=secrets.token_urlsafe(32),
            store=store,
        )
        # Python treats compiled code as fresh if the file has the recorded size and modification second.
        environment = {"PYTHONDONTWRITEBYTECODE": "1"} if self._changes is not None else {}
        return WorkerPool(self._command, self._slots, hello, environment=environment)

    async def _start(self, orders: ParentSignals) -> None:
        first, *others = self._slots
        # Watch from before the first worker imports the program.
        changes = None if self._changes is None else self._changes()
        try:
            ready = await self._begin(first)
            await asyncio.gather(*[self._begin(slot) for slot in others])
        except NotStarted as exc:
            raise exc.error from None
        self._told(msgspec.structs.replace(ready.facts, workers=[child.pid for child in self._crew.children]))
        self._chores.append(asyncio.create_task(self._keep_restarting(orders)))
        if changes is not None:
            self._chores.append(asyncio.create_task(self._watch(changes, orders)))

    async def _begin(self, slot: Slot) -> Ready:
        """Start a worker for the first time. If another process kills it, which isn't the program's fault, start
        another one.

        Raises:
            NotStarted: it can't start, or was killed repeatedly.
        """
        for left in reversed(range(STARTS)):
            try:
                return await self._crew.begin(slot).ready()
            except NotStarted as exc:
                if not (exc.killed and left):
                    raise
                logger.error("%s; starting another", exc.error.what.rstrip("."))
            await asyncio.sleep(slot.back_off.record_death())
        raise AssertionError

    async def _end(self, orders: ParentSignals) -> None:
        for chore in self._chores:
            chore.cancel()
        await self._crew.end(orders.force, [each for slot in self._slots for each in slot.listeners])
        await asyncio.gather(*self._chores, return_exceptions=True)

    async def _watch(self, changes: AsyncIterator[None], orders: ParentSignals) -> None:
        async for _ in changes:
            logger.info("The program has changed")
            orders.restart.set()

    async def _keep_restarting(self, orders: ParentSignals) -> None:
        while True:
            await orders.restart.wait()
            orders.restart.clear()
            await self._restart(orders)

    async def _restart(self, orders: ParentSignals) -> None:
        """Start a new process beside each worker, one after the other; when all are ready, stop the old ones.

        They stop together, because clients of a worker that stops alone reconnect to those that are about to stop.
        """
        crew = self._crew
        new: list[WorkerProcess] = []
        tries = Counter[int]()
        while slot := self._without_successor(new):  # one that was ready may have died since
            tries[slot.number] += 1
            crew.stop_mending(slot)
            try:
                if tries[slot.number] > STARTS:
                    raise _given_up(slot)
                await self._start_replacement(slot, new, orders)
            except NotStarted as exc:
                if exc.killed:  # not the program's fault
                    logger.error("%s; starting another", exc.error.what.rstrip("."))
                    continue
                tell_failure(exc.error)
                logger.error("The restart failed. The current workers keep serving.")
                crew.leave(new)
                crew.fill()
                return
        # Includes replacements of workers that died.
        old = [child for child in crew.serving_workers() if child not in new]
        crew.leave(old)
        crew.fill()  # a new one may have died in the meantime
        await asyncio.gather(*[child.left.wait() for child in old])
        pids = [str(child.pid) for child in crew.serving_workers()]
        logger.info("The new version is serving (%s %s)", "processes" if len(pids) > 1 else "process", ", ".join(pids))

    def _without_successor(self, new: Sequence[WorkerProcess]) -> Slot | None:
        """Return the first slot without a serving process among the `new`."""
        crew = self._crew
        there = {crew.children[child].number for child in crew.serving_workers() if child in new}
        return next((slot for slot in self._slots if slot.number not in there), None)

    async def _start_replacement(self, slot: Slot, new: list[WorkerProcess], orders: ParentSignals) -> None:
        """Start a replacement, one of the `new`, unless a newer request arrives before it's ready.

        Raises:
            NotStarted: it can't start, or was given up.
        """
        new.append(child := self._crew.begin(slot))
        ready = asyncio.create_task(child.ready())
        overtaken = asyncio.create_task(_some_time_after(orders.restart))
        try:
            await asyncio.wait((ready, overtaken), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                what = f"Worker {slot.number} didn't become ready before the next restart, and was stopped."
                raise NotStarted(CommandError(what, why="Your program is still starting, or it hangs."))
            ready.result()
        finally:
            ready.cancel()
            overtaken.cancel()


def _given_up(slot: Slot) -> NotStarted:
    what = f"Each new process for worker {slot.number} was killed before all were ready."
    return NotStarted(
        CommandError(what, why="They were killed by another process, or by the kernel for lack of memory.")
    )


async def _some_time_after(event: asyncio.Event) -> None:
    await event.wait()
    await asyncio.sleep(OVERTAKEN)


def slots_of(sockets: Sequence[socket.socket], workers: int, *, passed: bool) -> list[Slot]:
    """Return the slots of the workers, each with its own socket or with all of them."""
    if not passed and len(sockets) == workers:
        return [Slot(number, [each], own=True) for number, each in enumerate(sockets, 1)]
    return [Slot(number, sockets, own=False) for number in range(1, workers + 1)]


def can_supervise() -> bool:
    """Return whether sockets can be passed to another process by their descriptors."""
    return os.name == "posix"


def supervise(
    host: str,
    port: int,
    workers: int,
    *,
    run: int = 1,
    descriptor: int | None = None,
    watched: Path | None = None,
    told: Callable[[Facts], None] = show,
) -> None:
    """Serve with several workers until stopped.

    Args:
        host: address to listen on.
        port: port to listen on; 0 for any.
        workers: number of workers.
        run: number of this ``run()`` call in the program.
        descriptor: descriptor of a socket to listen on instead.
        watched: folder; when a Python file in it changes, all workers restart.
        told: called once when the workers serve.

    Raises:
        CommandError: the address can't be used, or a worker can't start.
        SystemExit: a second signal stopped it without draining.
    """
    command = own_command()
    sockets = passed = passed_sockets(descriptor)
    if passed:
        host = sockets[0].getsockname()[0]
    else:
        sockets = open_sockets(host, port, workers)
    try:
        slots = slots_of(sockets, workers, passed=bool(passed))
        program = None if watched is None else partial(changes, watched)
        store = partial(run_local_server, open_store)
        supervisor = Supervisor(command, slots, host=host, run=run, changes=program, store=store, told=told)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(supervisor.run())
    finally:
        for each in sockets:
            each.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory if installed: the parent serves the store of all workers, which takes a third less
    time.
    """
    try:
        import uvloop  # noqa: PLC0415  not everywhere
    except ImportError:
        return asyncio.SelectorEventLoop
    return uvloop.new_event_loop
