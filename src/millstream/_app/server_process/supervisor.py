"""Serving with several workers: the parent starts, restarts, and stops them.

It doesn't run user code (a script that calls ``run(workers=…)`` has run up to there). The first worker starts alone, so
that a start-up error appears once; the others follow together. A replacement accepts from the same socket before the
old worker stops, so a restart rejects no connection.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import cache_from_source
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import msgspec

from millstream._app.server_process import CommandError, report
from millstream._app.server_process.event_loop import (
    INTERRUPTED,
    LAST_SECONDS,
    has_terminal,
    loop_factory,
    receive_signals,
)
from millstream._app.server_process.listen_sockets import address_of, passed_sockets
from millstream._app.server_process.startup_message import Facts, show
from millstream._app.server_process.worker_process import (
    GRACE,
    KILLED,
    PATIENCE,
    READY,
    STARTING,
    WELL,
    ConfigState,
    Hello,
    NotStarted,
    Ready,
    StartFailure,
    SupervisedWorker,
    WorkerProcess,
    WorkerState,
    WorkerStates,
    how,
    open_sockets,
    own_command,
)
from millstream._config import ConfigVersion
from millstream._protocol.errors import LocalError
from millstream._stores import backend_for
from millstream._stores.local.server import run_local_server
from millstream._tasks import Tasks, watch

if TYPE_CHECKING:
    from millstream._gateway.files.live import LiveConfig
    from millstream._gateway.files.values import GatewayConfig

logger = logging.getLogger("millstream")
PAUSE = 0.1
"""Seconds between two looks at whether a worker serves."""


MAX_FILES = 5_000
"""Maximum files in a folder. A folder with more isn't a single program."""
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})

Seen = dict[str, tuple[int, int]]


def changes(folder: Path) -> AsyncIterator[None]:
    """Yield when Python files below a folder have changed since the call and have stopped changing.

    At the call and after each change, it deletes the compiled code of these files.
    """
    served = look(folder)
    _delete_compiled(served)
    return _changes(watch(partial(look, folder), served))


async def _changes(changed: AsyncIterator[Seen]) -> AsyncIterator[None]:
    async for seen in changed:
        await asyncio.to_thread(_delete_compiled, seen)
        yield


def _delete_compiled(files: Iterable[str]) -> None:
    """Delete the compiled code of files. Python would use it after an edit of the same length in the same second."""
    for path in files:
        with suppress(OSError):
            os.remove(cache_from_source(path))  # noqa: PTH107  as in `look`


def look(folder: Path) -> Seen:
    """Return the modification time and size of each Python file, without installed packages."""
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
"""Maximum processes started in a row for one worker, if all are killed, before giving up."""
OVERTAKEN = 5
"""Seconds that a start may still take after the next restart is requested. A hanging program must not block the fixed
version, and frequent requests must not prevent a good one from getting ready.
"""


@dataclass(eq=False)
class Supervisor:
    """Supervises several workers: starts their processes, replaces processes that die, and restarts them.

    SIGHUP has two meanings. Sent by a person who has installed a new version, it requests a restart. Sent by the
    kernel, it means that the terminal has closed. A server that was started in it then stops, as it does without
    workers.
    """

    command: Sequence[str]
    """Command that starts a worker."""
    workers: Sequence[SupervisedWorker]
    host: str
    """Configured address, which decides who is treated as local."""
    run_number: int
    """Number of this ``run()`` call in the program."""
    store: Callable[[], AbstractAsyncContextManager[str]]
    """Opens the shared store for the whole run, and yields its address."""
    watched: Path | None = None
    """Folder to watch. When a Python file in it changes, all workers restart."""
    on_ready: Callable[[Facts], None] = show
    """Called once, when the workers are serving."""
    live: "LiveConfig | None" = None
    """The configuration file of a gateway, which the workers get from here."""

    def __post_init__(self) -> None:
        self._hello = Hello(
            worker=0,
            workers=len(self.workers),
            host=self.host,
            port=address_of(self.workers[0].listeners[0])[1],
            listeners=[],
            run=self.run_number,
            reloads=self.watched is not None,
            key=secrets.token_urlsafe(32),
            config=None if self.live is None else self.live.version,
        )
        """Common part of the workers' roles."""
        # Otherwise, workers would write the compiled code that `changes` deletes.
        self._environment = {} if self.watched is None else {"PYTHONDONTWRITEBYTECODE": "1"}
        self._children: list[WorkerProcess] = []
        """All processes that haven't ended, including exiting ones."""
        self._tasks = Tasks()
        self._main: asyncio.Task[None]
        self._stopping = self._forced = self._is_ready = self._interrupted = False
        self._restart_requested = asyncio.Event()
        self._had_terminal = has_terminal()

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            CommandError: A worker can't start.
            SystemExit: A second signal stopped it without draining.
        """
        main: Any = asyncio.current_task()
        self._main = main
        with receive_signals(self._receive):
            async with AsyncExitStack() as stack:
                try:
                    with suppress(asyncio.CancelledError):  # a signal stops the supervisor
                        await self._serve(stack)
                finally:
                    await self._end()
        if self._forced or self._interrupted:
            sys.exit(INTERRUPTED)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._main.get_loop().call_soon_threadsafe(self._obey, number)

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP and (has_terminal() or not self._had_terminal):
            if not self._stopping:
                logger.info("Restarting all workers. The current ones stop when the new ones are ready.")
                self._restart_requested.set()
        elif not self._stopping:
            logger.info("Stopping. Press Ctrl-C again to stop immediately.")
            self._stopping = True
            self._interrupted = number == signal.SIGINT and not self._is_ready
            self._main.cancel()
        elif number == signal.SIGINT and not self._forced:
            logger.warning("Stopping immediately after a second Ctrl-C")
            self._forced = True
            for child in self._children:
                child.force()
                self._tasks.spawn(child.see_out(LAST_SECONDS))

    async def _serve(self, stack: AsyncExitStack) -> None:
        """Open the store, start the workers, and restart them on request."""
        try:
            store = await stack.enter_async_context(self.store())
        except OSError as exc:
            raise CommandError(
                "The workers' parent process can't create a socket for its store.",
                why=str(exc),
                fix="Set TMPDIR to a folder that this program can write to.",
            ) from exc
        self._hello = msgspec.structs.replace(self._hello, store=store)
        first, *others = self.workers
        # Watch from before the first worker imports the program.
        changed = None if self.watched is None else changes(self.watched)
        ready = await self._start_first(first, changed)
        await asyncio.gather(*[self._start(worker) for worker in others])
        self._is_ready = True
        self.on_ready(msgspec.structs.replace(ready.facts, workers=[child.pid for child in self._children]))
        if changed is not None:
            self._tasks.spawn(self._restart_after(changed))
        if self.live is not None:
            self.live.on_update = self._tell_config
            self._tasks.spawn(self.live.watch(self._prepare_config))
        while True:
            await self._restart_requested.wait()
            self._restart_requested.clear()
            async with self.live.updating if self.live is not None else nullcontext():
                await self._restart()

    async def _start_first(self, worker: SupervisedWorker, changed: AsyncIterator[None] | None) -> Ready:
        """Start a worker. If the program has an error, wait for a change to it, and try again.

        Raises:
            NotStarted: The worker can't start, and either changes aren't watched or they wouldn't help.
        """
        while True:
            try:
                return await (await self._start(worker)).ready()
            except NotStarted as exc:
                if changed is None or not exc.detail:
                    raise
                tell_failure(exc)
                logger.warning("Waiting for a change …")
            await anext(changed)

    async def _restart_after(self, changed: AsyncIterator[None]) -> None:
        async for _ in changed:
            logger.info("The program has changed")
            self._restart_requested.set()

    async def _restart(self) -> None:
        """Start a new process beside each worker, one after the other. When all are ready, stop the old ones.

        They stop together. Otherwise, clients of a stopped worker would reconnect to others that are about to stop.
        """
        new, before, live = list[WorkerProcess](), self._hello, self.live
        in_force = None if live is None else (live.version, live.config)
        self._tell(StartFailure(""))
        try:
            if self.live is not None:
                self._hello = msgspec.structs.replace(before, config=await self._read_config(self.live))
            while empty := self._missing_workers(new):  # a process that was ready may have died since
                worker = empty[0]
                if len(new) >= STARTS * len(self.workers):
                    what = f"Each new process for worker {worker.number} was killed before all were ready."
                    raise NotStarted(what, why=KILLED)
                if worker.mending is not None:
                    worker.mending.cancel()
                new.append(await self._start_before_next(worker))
        except NotStarted as exc:
            tell_failure(exc)
            self._tell(msgspec.convert(exc, StartFailure, from_attributes=True))
            logger.error("The restart failed. The current workers keep serving.")
            self._hello = before
            if live is not None and in_force is not None:
                (live.version, live.config), live.refusal = in_force, str(exc)
            self._leave(new)
            self._fill()
            return
        # Includes replacements of workers that died.
        old = [child for child in self._serving_workers() if child not in new]
        self._leave(old)
        self._fill()  # a new process may have died in the meantime
        await asyncio.gather(*[child.left.wait() for child in old])
        pids = [str(child.pid) for child in self._serving_workers()]
        logger.info("The new version is serving (%s %s)", "processes" if len(pids) > 1 else "process", ", ".join(pids))

    async def _read_config(self, live: "LiveConfig") -> ConfigVersion:
        """Return the configuration for new workers. It may change what running ones can't.

        Raises:
            NotStarted: It has a mistake.
        """
        try:
            live.version, live.config = await asyncio.to_thread(live.read)
        except (ValueError, LocalError, OSError) as exc:
            raise NotStarted(str(exc)) from exc
        except Exception as exc:
            logger.exception("%s can't be read", live.path)
            raise NotStarted(f"{live.path} can't be read.") from exc
        live.refusal = ""
        return live.version

    async def _prepare_config(self, version: ConfigVersion, config: "GatewayConfig") -> None:
        """Let all workers prepare a configuration, for `_tell_config`.

        Raises:
            LocalError: One of them can't use it.
        """
        while not self._serving_workers():  # noqa: ASYNC110  they're restarting
            await asyncio.sleep(PAUSE)
        seconds, prepared = GRACE + max(each.start_timeout for each in config.upstreams), list[WorkerProcess]()
        while children := [child for child in self._started_workers() if child not in prepared]:
            prepared += children  # others may start in the meantime
            errors = await asyncio.gather(*(child.prepare_config(version, seconds) for child in children))
            if error := next(filter(None, errors), ""):
                raise LocalError(error)
        self._hello = msgspec.structs.replace(self._hello, config=version)

    def _tell_config(self) -> None:
        """Let the workers use the configuration that's in force. They have usually prepared it."""
        for child in self._started_workers():
            if not self._has_config(child):
                self._tasks.spawn(self._catch_up(child))

    def _has_config(self, child: WorkerProcess) -> bool:
        version = self._hello.config
        if self.live is None or version is None:
            return True
        has = version.number in (child.config_number, child.prepared_number)
        if has:
            child.config_number = version.number
            child.send(ConfigState(version.number, self.live.refusal))
        return has

    async def _catch_up(self, child: WorkerProcess) -> None:
        """Let a process that started or responded too late use the configuration that's in force, or replace it."""
        assert self.live is not None and self._hello.config is not None  # noqa: S101, PT018  see `_has_config`
        async with self.live.updating:
            error = await child.prepare_config(self._hello.config, PATIENCE)
            if not self._has_config(child) and child in self._started_workers():
                logger.error("%s can't use the configuration and is replaced: %s", child, error)
                self._leave([child])

    def _missing_workers(self, among: Iterable[WorkerProcess]) -> list[SupervisedWorker]:
        """Return the workers without a serving process."""
        served = [child.worker for child in among if child.state == READY]
        return [worker for worker in self.workers if worker not in served]

    async def _start_before_next(self, worker: SupervisedWorker) -> WorkerProcess:
        """Start a worker, unless the next restart is requested before it's ready.

        Raises:
            NotStarted: The worker can't start, or the attempt was given up.
        """
        starting, seconds = asyncio.create_task(self._start(worker)), OVERTAKEN
        try:
            while seconds and not starting.done():
                await asyncio.wait((starting,), timeout=1)
                seconds -= self._restart_requested.is_set()
            if not starting.done():
                what = f"Worker {worker.number} didn't become ready before the next restart, and was stopped."
                raise NotStarted(what, why="Your program is still starting, or it's hanging.")
            return starting.result()
        finally:
            starting.cancel()

    async def _start(self, worker: SupervisedWorker, *, why: str = "") -> WorkerProcess:
        """Start processes until one is ready, waiting longer each time.

        Args:
            why: How the replaced process ended. If empty, only killed processes are started again.

        Raises:
            NotStarted: The first process can't start, or all were killed by other processes.
        """
        mending, starts = bool(why), 0
        while True:
            if why:
                await self._wait_after_death(worker, why)
            starts += 1
            try:
                child = self._spawn(worker)
                try:
                    await child.ready()
                except asyncio.CancelledError:
                    self._leave([child])
                    raise
            except NotStarted as exc:
                if not mending and (self._stopping or not exc.killed or starts == STARTS):
                    raise
                why = exc.what.rstrip(".")
                if mending:
                    tell_failure(exc)
            else:
                if mending:
                    logger.info("%s is ready", child)
                return child

    async def _wait_after_death(self, worker: SupervisedWorker, why: str) -> None:
        seconds = worker.record_death()
        self._tell()
        logger.error("%s; starting another%s", why, f" in {seconds:g} s" if seconds else "")
        if seconds and worker.own and not self._serving_workers():
            # Refuse connections, including waiting ones. The next worker makes the socket listen again.
            for listener in worker.listeners:
                # Shutting a socket down twice would make it accept dead connections.
                if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listener.shutdown(socket.SHUT_RD)
        await asyncio.sleep(seconds)

    def _spawn(self, worker: SupervisedWorker) -> WorkerProcess:
        """Start a process. If it serves and then dies, it's replaced automatically.

        Raises:
            NotStarted: The system can't start another process.
        """
        numbers = {each.number: [listener.fileno() for listener in each.listeners] for each in self.workers}
        mine = numbers.pop(worker.number)
        others = numbers if worker.own else {}  # with a shared socket, no takeover is needed
        hello = msgspec.structs.replace(self._hello, worker=worker.number, listeners=mine, others=others)
        try:
            child = WorkerProcess(self.command, hello, worker, environment=self._environment)
        except OSError as exc:
            raise NotStarted(f"Worker {worker.number} couldn't be started.", why=str(exc)) from exc
        self._children.append(child)
        self._tasks.spawn(self._look_after(child))
        return child

    def _serving_workers(self) -> list[WorkerProcess]:
        """Return the processes that serve and should continue."""
        return [child for child in self._children if child.state == READY]

    def _started_workers(self) -> list[WorkerProcess]:
        """Return the processes that serve or wait for the version to serve, and should continue."""
        return [child for child in self._children if child.state in (STARTING, READY) and child.started.is_set()]

    def _leave(self, children: Iterable[WorkerProcess], *, replaced: bool = True) -> None:
        """Stop processes, which have usually been replaced."""
        for child in children:
            child.drain(replaced=replaced)
            self._tasks.spawn(child.see_out(child.patience + GRACE))

    def _fill(self) -> None:
        """Start replacements for all workers without a process."""
        for worker in self.workers:
            self._mend(worker, f"Worker {worker.number} is missing")

    async def _end(self) -> None:
        """Stop all processes: gracefully, or by the kernel.

        The sockets are closed when no process accepts any more, so that connections are rejected instead of waiting.
        """
        self._stopping = True
        for worker in self.workers:
            if worker.mending is not None:
                worker.mending.cancel()
        children = list(self._children)
        self._leave(children, replaced=False)
        await asyncio.gather(*[child.left.wait() for child in children])
        for worker in self.workers:
            for each in worker.listeners:
                each.close()
        await asyncio.gather(*[child.ended for child in children])
        await self._tasks.close()

    async def _look_after(self, child: WorkerProcess) -> None:
        """Supervise a process from start to exit and replace it as soon as it accepts no more connections."""
        with suppress(NotStarted):  # reported by `_start`
            await child.started.wait()
            if not self._has_config(child):  # changed while it started
                self._tasks.spawn(self._catch_up(child))
            await child.ready()
            self._tell()
            if child.worker.deaths:
                self._tasks.spawn(self._tell_of_health(child))
            if child.watchdog:
                self._tasks.spawn(child.watch())
            await child.left.wait()
            self._tell()
            self._mend(child.worker, f"{child} {how(child.ended.result()) if child.ended.done() else 'was stopped'}")
        await child.ended
        self._children.remove(child)
        self._tell()

    async def _tell_of_health(self, child: WorkerProcess) -> None:
        await asyncio.sleep(WELL)
        if child.state == READY:
            child.worker.deaths = 0
            self._tell()

    def _mend(self, worker: SupervisedWorker, why: str) -> None:
        """Start a replacement for a worker, unless there's already a process or a replacement."""
        looking = worker.mending is not None and not worker.mending.done()
        taken = any(child.worker is worker and child.state in (STARTING, READY) for child in self._children)
        if not (self._stopping or looking or taken):
            worker.restarts += 1
            worker.mending = self._tasks.spawn(self._start(worker, why=why))

    def _tell(self, failure: StartFailure | None = None) -> None:
        """Send every worker the state of all workers, or the reason why the changed program can't start."""
        order = sorted(self._children, key=lambda child: (child.worker.number, child.pid))
        workers = [
            WorkerState(each.number, child.pid, child.state, each.restarts, each.deaths)
            for child in order
            for each in (child.worker,)
        ]
        gone = [each for each in self.workers if each not in [child.worker for child in order]]
        workers += [WorkerState(each.number, 0, "restarting", each.restarts, each.deaths) for each in gone]
        for child in order:
            child.send(failure or WorkerStates(workers))


def tell_failure(failure: CommandError) -> None:
    """Report why a worker didn't start: as usual on a terminal, and in one line to a log."""
    if sys.stderr.isatty():
        report(failure)
    else:
        parts = {name: text for name in ("why", "fix", "detail") if (text := getattr(failure, name))}
        logger.error("%s", failure.what, extra=parts)


def make_workers(sockets: Sequence[socket.socket], workers: int, *, passed: bool) -> list[SupervisedWorker]:
    """Return the workers, each with its own socket or with all of them."""
    if not passed and len(sockets) == workers:
        return [SupervisedWorker(number, [each], own=True) for number, each in enumerate(sockets, 1)]
    return [SupervisedWorker(number, sockets, own=False) for number in range(1, workers + 1)]


def supervise(
    host: str,
    port: int,
    workers: int,
    *,
    run: int = 1,
    descriptor: int | None = None,
    watched: Path | None = None,
    on_ready: Callable[[Facts], None] = show,
    live: "LiveConfig | None" = None,
) -> None:
    """Serve with several workers until stopped.

    Args:
        host: Address to listen on.
        port: Port to listen on, or 0 for any.
        workers: Number of workers.
        run: Number of this ``run()`` call in the program.
        descriptor: Descriptor of a socket to listen on instead.
        watched: Folder; when a Python file in it changes, all workers restart.
        on_ready: Called once, when the workers are serving.
        live: The configuration file of a gateway.

    Raises:
        CommandError: The address can't be used, or a worker can't start.
        SystemExit: A second signal stopped it without draining.
    """
    command = own_command()
    sockets = passed = passed_sockets(descriptor)
    if passed:
        host, _ = address_of(sockets[0])
    else:
        sockets = open_sockets(host, port, workers)
    try:
        supervised = make_workers(sockets, workers, passed=bool(passed))
        store = partial(run_local_server, backend_for)
        supervisor = Supervisor(command, supervised, host, run, store, watched, on_ready, live)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(supervisor.run())
    finally:
        for each in sockets:
            each.close()
