"""Serving with several workers: the parent starts, restarts, and stops them.

It doesn't run user code (a script that calls ``run(workers=…)`` has run up to there). The first worker starts alone, so
that a start-up error appears once; the others follow together. A replacement accepts from the same socket before the
old worker stops, so no connection is ever refused.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import msgspec

from millstream._app.server_process import CommandError, report
from millstream._app.server_process.facts import Facts, show
from millstream._app.server_process.listen_sockets import passed_sockets
from millstream._app.server_process.runner import INTERRUPTED, LAST_SECONDS, loop_factory, receive_signals
from millstream._app.server_process.slot import (
    KILLED,
    READY,
    BackOff,
    Hello,
    NotStarted,
    StartFailure,
    WorkerProcess,
    WorkerState,
    WorkerStates,
    how,
    open_sockets,
    own_command,
)
from millstream._stores import backend_for
from millstream._stores.local.server import run_local_server
from millstream._tasks import Tasks

logger = logging.getLogger("millstream")


class ParentSignals:
    """Events that signals to the parent set: stop, stop immediately, or restart all workers.

    SIGHUP has two meanings. Sent by a person who has installed a new version, it requests a restart. Sent by the
    kernel, it says that the terminal is gone, and a server started in it ends, as it does without workers.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        self.restart = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._had_terminal = _has_terminal()

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
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
    """Yield when Python files below a folder have changed since now, and have stopped changing.

    It polls, which works on every disk and needs no library.
    """
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
"""Maximum processes started in a row for one slot, if all are killed, before giving up."""
OVERTAKEN = 5.0
"""Seconds that a start may still take when the next restart is requested: a hanging program must not block its fixed
version, and frequent requests must not keep a good one from getting ready.
"""


@dataclass(eq=False)
class Slot:
    """The slot of one worker: its sockets, and the search for a replacement."""

    number: int
    listeners: Sequence[socket.socket]
    own: bool
    """Whether no other process accepts from them."""
    restarts: int = 0
    back_off: BackOff = field(default_factory=lambda: BackOff(time.monotonic))
    mending: asyncio.Task[WorkerProcess] | None = None
    """Task that starts a replacement."""


class Supervisor:
    """One run of several workers: it starts their processes, replaces those that die, and restarts them."""

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
            command: Command that starts a worker.
            slots: One for each worker.
            host: Configured address, which decides who counts as local.
            run: Number of this ``run()`` call in the program.
            store: Opens the shared store for the whole run, and yields its address.
            changes: Yields whenever the program has changed.
            told: Called once when the workers serve.
        """
        self._command = command
        self._slots = slots
        self._hello = Hello(
            worker=0,
            workers=len(slots),
            host=host,
            port=slots[0].listeners[0].getsockname()[1],
            listeners=[],
            run=run,
            reloads=changes is not None,
            key=secrets.token_urlsafe(32),
        )
        """Common part of the workers' roles."""
        self._store = store
        self._changes = changes
        # Python treats compiled code as fresh if the file has the recorded size and modification second.
        self._environment = {} if changes is None else {"PYTHONDONTWRITEBYTECODE": "1"}
        self._told = told
        self._children: dict[WorkerProcess, Slot] = {}
        """All processes that haven't ended, including those that are exiting."""
        self._tasks = Tasks()
        self._stopping = False

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            CommandError: A worker can't start.
            SystemExit: A second signal stopped it without draining.
        """
        async with AsyncExitStack() as stack:
            orders = ParentSignals()
            stack.enter_context(receive_signals(orders.receive))
            try:
                store = await stack.enter_async_context(self._store())
            except OSError as exc:
                raise CommandError(
                    "The workers' parent process can't create the socket of its store.",
                    why=str(exc),
                    fix="Set TMPDIR to a folder that this program may write to.",
                ) from exc
            self._hello = msgspec.structs.replace(self._hello, store=store)
            serving = self._tasks.spawn(self._serve(orders))
            stop = self._tasks.spawn(orders.stop.wait())
            try:
                await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()  # a worker can't start
            finally:
                serving.cancel()
                await self._end(orders.force)
            if orders.force.is_set():
                sys.exit(INTERRUPTED)

    async def _serve(self, orders: ParentSignals) -> None:
        """Start the workers, and restart them on request."""
        first, *others = self._slots
        # Watch from before the first worker imports the program.
        changes = None if self._changes is None else self._changes()
        try:
            ready = await (await self._start(first)).ready()
            await asyncio.gather(*[self._start(slot) for slot in others])
        except NotStarted as exc:
            raise CommandError(**msgspec.structs.asdict(exc.failure)) from None
        self._told(msgspec.structs.replace(ready.facts, workers=[child.pid for child in self._children]))
        if changes is not None:
            self._tasks.spawn(_restart_after(changes, orders))
        while True:
            await orders.restart.wait()
            orders.restart.clear()
            await self._restart(orders)

    async def _restart(self, orders: ParentSignals) -> None:
        """Start a new process beside each worker, one after the other; when all are ready, stop the old ones.

        They stop together, because clients of a worker that stops alone reconnect to those that are about to stop.
        """
        new: list[WorkerProcess] = []
        self._tell(StartFailure(""))
        try:
            while empty := self._empty_slots(new):  # one that was ready may have died since
                slot = empty[0]
                if len(new) >= STARTS * len(self._slots):
                    what = f"Each new process for worker {slot.number} was killed before all were ready."
                    raise NotStarted(StartFailure(what, KILLED))
                if slot.mending is not None:
                    slot.mending.cancel()
                new.append(await self._start_before_next(slot, orders))
        except NotStarted as exc:
            tell_failure(exc.failure)
            self._tell(exc.failure)
            logger.error("The restart failed. The current workers keep serving.")
            self._leave(new)
            self._fill()
            return
        # Includes replacements of workers that died.
        old = [child for child in self._serving_workers() if child not in new]
        self._leave(old)
        self._fill()  # a new one may have died in the meantime
        await asyncio.gather(*[child.left.wait() for child in old])
        pids = [str(child.pid) for child in self._serving_workers()]
        logger.info("The new version is serving (%s %s)", "processes" if len(pids) > 1 else "process", ", ".join(pids))

    async def _start_before_next(self, slot: Slot, orders: ParentSignals) -> WorkerProcess:
        """Start a worker, unless the next restart is requested before it's ready.

        Raises:
            NotStarted: It can't start, or was given up.
        """
        starting = asyncio.create_task(self._start(slot))
        overtaken = asyncio.create_task(_some_time_after(orders.restart))
        try:
            await asyncio.wait((starting, overtaken), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                what = f"Worker {slot.number} didn't become ready before the next restart, and was stopped."
                raise NotStarted(StartFailure(what, "Your program is still starting, or it hangs."))
            return starting.result()
        finally:
            starting.cancel()
            overtaken.cancel()

    async def _start(self, slot: Slot, *, why: str = "") -> WorkerProcess:
        """Start processes until one is ready, waiting longer each time.

        Args:
            slot: Slot of the worker.
            why: What ended the process that it replaces. If empty, only killed processes are started again.

        Raises:
            NotStarted: The first process can't start, or all were killed by other processes.
        """
        mending, starts = bool(why), 0
        while True:
            if why:
                await self._wait_after_death(slot, why)
            child: WorkerProcess | None = None
            try:
                starts += 1
                child = self._spawn(slot)
                await child.ready()
            except NotStarted as exc:
                if not mending and (self._stopping or not exc.killed or starts == STARTS):
                    raise
                why = exc.failure.what.rstrip(".")
                if mending:
                    tell_failure(exc.failure)
            except asyncio.CancelledError:
                if child is not None:
                    self._leave([child])
                raise
            else:
                if mending:
                    logger.info("%s is ready", child)
                return child

    async def _wait_after_death(self, slot: Slot, why: str) -> None:
        seconds = slot.back_off.record_death()
        logger.error("%s; starting another%s", why, f" in {seconds:g} s" if seconds else "")
        if seconds and slot.own and not self._serving_workers():
            # Refuse connections, including waiting ones. The next worker makes the socket listen again.
            for listener in slot.listeners:
                # A socket that is shut down twice hands out connections that are shut down.
                if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listener.shutdown(socket.SHUT_RD)
        await asyncio.sleep(seconds)

    def _spawn(self, slot: Slot) -> WorkerProcess:
        """Start a process. If it serves and then dies, it's replaced automatically.

        Raises:
            NotStarted: The system can't start another process.
        """
        numbers = {each.number: [listener.fileno() for listener in each.listeners] for each in self._slots}
        mine = numbers.pop(slot.number)
        others = numbers if slot.own else {}  # with a shared socket, no takeover is needed
        hello = msgspec.structs.replace(self._hello, worker=slot.number, listeners=mine, others=others)
        try:
            child = WorkerProcess(self._command, hello, environment=self._environment)
        except OSError as exc:
            raise NotStarted(StartFailure(f"Worker {slot.number} couldn't be started.", str(exc))) from exc
        self._children[child] = slot
        self._tasks.spawn(self._look_after(child))
        return child

    def _serving_workers(self) -> list[WorkerProcess]:
        """Return the processes that serve and should continue."""
        return [child for child in self._children if child.state == READY and not child.leaves]

    def _empty_slots(self, among: Iterable[WorkerProcess]) -> list[Slot]:
        """Return the slots without a serving process among some."""
        served = [self._children[child] for child in self._serving_workers() if child in among]
        return [slot for slot in self._slots if slot not in served]

    def _leave(self, children: Sequence[WorkerProcess], *, replaced: bool = True) -> None:
        """Stop processes, which usually have been replaced."""
        for child in children:
            child.drain(replaced=replaced)
            self._tasks.spawn(child.see_out())

    def _fill(self) -> None:
        """Start replacements in all slots without a serving process."""
        for slot in self._empty_slots(self._children):
            self._mend(slot, f"Worker {slot.number} is missing")

    async def _end(self, force: asyncio.Event) -> None:
        """Stop all processes: gracefully, or by force once `force` is set, or by the kernel.

        The sockets are closed when no process accepts any more, so that connections are refused instead of waiting.
        """
        self._stopping = True
        for slot in self._slots:
            if slot.mending is not None:
                slot.mending.cancel()
        children = list(self._children)
        self._leave(children, replaced=False)
        closing = self._tasks.spawn(_close(children, self._slots))
        everyone, forced = asyncio.gather(*[child.ended for child in children]), self._tasks.spawn(force.wait())
        await asyncio.wait((everyone, forced), return_when=asyncio.FIRST_COMPLETED)
        if forced.done():
            for child in children:
                child.force()
            await asyncio.wait((everyone,), timeout=LAST_SECONDS)
            for child in children:
                child.kill_late()
        await everyone
        await closing
        await self._tasks.close()

    async def _look_after(self, child: WorkerProcess) -> None:
        """Supervise a process from start to end, and replace it as soon as it accepts no more connections."""
        slot = self._children[child]
        with suppress(NotStarted):  # reported by `_start`
            await child.ready()
            slot.back_off.serves()
            self._tell()
            if child.watchdog:
                self._tasks.spawn(child.watch())
            await child.left.wait()
            self._tell()
            self._mend(slot, f"{child} {how(child.ended.result()) if child.ended.done() else 'was stopped'}")
        await child.ended
        del self._children[child]
        self._tell()

    def _mend(self, slot: Slot, why: str) -> None:
        """Start a replacement for a slot, unless there's already a process or a replacement."""
        looking = slot.mending is not None and not slot.mending.done()
        taken = any(place is slot and not child.leaves for child, place in self._children.items())
        if not (self._stopping or looking or taken):
            slot.restarts += 1
            slot.mending = self._tasks.spawn(self._start(slot, why=why))

    def _tell(self, failure: StartFailure | None = None) -> None:
        """Send all workers the state of all, or why the changed program can't start."""
        order = sorted(self._children.items(), key=lambda each: (each[1].number, each[0].pid))
        workers = [WorkerState(slot.number, child.pid, child.state, slot.restarts) for child, slot in order]
        for child in self._children:
            child.tell(failure or WorkerStates(workers))


async def _restart_after(changes: AsyncIterator[None], orders: ParentSignals) -> None:
    async for _ in changes:
        logger.info("The program has changed")
        orders.restart.set()


async def _some_time_after(event: asyncio.Event) -> None:
    await event.wait()
    await asyncio.sleep(OVERTAKEN)


async def _close(children: Sequence[WorkerProcess], slots: Sequence[Slot]) -> None:
    await asyncio.gather(*[child.left.wait() for child in children])
    for slot in slots:
        for each in slot.listeners:
            each.close()


def tell_failure(failure: StartFailure) -> None:
    """Report why a worker didn't start: as usual on a terminal, and in one line to a log."""
    parts: dict[str, str] = msgspec.structs.asdict(failure)
    if sys.stderr.isatty():
        report(CommandError(**parts))
    else:
        logger.error("%s", parts.pop("what"), extra={name: text for name, text in parts.items() if text})


def slots_of(sockets: Sequence[socket.socket], workers: int, *, passed: bool) -> list[Slot]:
    """Return the slots of the workers, each with its own socket or with all of them."""
    if not passed and len(sockets) == workers:
        return [Slot(number, [each], own=True) for number, each in enumerate(sockets, 1)]
    return [Slot(number, sockets, own=False) for number in range(1, workers + 1)]


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
        host: Address to listen on.
        port: Port to listen on; 0 for any.
        workers: Number of workers.
        run: Number of this ``run()`` call in the program.
        descriptor: Descriptor of a socket to listen on instead.
        watched: Folder; when a Python file in it changes, all workers restart.
        told: Called once when the workers serve.

    Raises:
        CommandError: The address can't be used, or a worker can't start.
        SystemExit: A second signal stopped it without draining.
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
        store = partial(run_local_server, backend_for)
        supervisor = Supervisor(command, slots, host=host, run=run, changes=program, store=store, told=told)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(supervisor.run())
    finally:
        for each in sockets:
            each.close()
