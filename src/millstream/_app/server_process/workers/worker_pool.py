"""The workers of one address: their slots, processes, and replacements."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence

import msgspec

from millstream._app.server_process.errors import CommandError, report
from millstream._app.server_process.runner import LAST_SECONDS
from millstream._app.server_process.workers.slot import Hello, WorkerState, WorkerStates
from millstream._app.server_process.workers.worker_process import READY, BackOff, NotStarted, WorkerProcess, how
from millstream._tasks import Tasks

logger = logging.getLogger("millstream")

GRACE = 5.0
"""Seconds after a worker's own timeout before it's killed."""


class Slot:
    """The slot of one worker: its sockets, and the search for a replacement."""

    def __init__(self, number: int, listeners: Sequence[socket.socket], *, own: bool) -> None:
        self.number = number
        self.listeners = listeners
        self.own = own
        """Whether no other process accepts from them."""
        self.restarts = 0
        self.back_off = BackOff(time.monotonic)
        self.mending: asyncio.Task[None] | None = None
        """Task that starts a replacement."""


class WorkerPool:
    """Starts processes, and replaces those that die."""

    def __init__(
        self, command: Sequence[str], slots: Sequence[Slot], hello: Hello, *, environment: Mapping[str, str]
    ) -> None:
        """Create the pool without starting processes.

        Args:
            command: command that starts a worker.
            slots: one for each worker.
            hello: common part of the workers' roles.
            environment: environment variables in addition to the parent's.
        """
        # Configuration
        self._command = command
        self._hello = hello
        self._environment = environment
        # State
        self.slots = slots
        self.children: dict[WorkerProcess, Slot] = {}
        """All processes that haven't ended, including those that are exiting."""
        self._tasks = Tasks()
        self._stopping = False

    def begin(self, slot: Slot) -> WorkerProcess:
        """Start a process. If it serves and then dies, it's replaced automatically.

        Raises:
            NotStarted: the system can't start another process.
        """
        numbers = {each.number: [listener.fileno() for listener in each.listeners] for each in self.slots}
        mine = numbers.pop(slot.number)
        others = numbers if slot.own else {}  # with a shared socket, no takeover is needed
        hello = msgspec.structs.replace(self._hello, worker=slot.number, listeners=mine, others=others)
        try:
            child = WorkerProcess(self._command, hello, environment=self._environment, on_left=self._handle_departure)
        except OSError as exc:
            raise NotStarted(CommandError(f"Worker {slot.number} couldn't be started.", why=str(exc))) from exc
        self.children[child] = slot
        self._tasks.spawn(self._look_after(child))
        return child

    def serving_workers(self) -> list[WorkerProcess]:
        """Return the processes that serve and should continue."""
        return [child for child in self.children if child.state == READY and not child.leaves]

    def leave(self, children: Sequence[WorkerProcess]) -> None:
        """Stop processes that have been replaced."""
        for child in children:
            child.drain(replaced=True)
            self._tasks.spawn(self._see_out(child))

    def stop_mending(self, slot: Slot) -> None:
        """Stop replacing the worker of this slot, because a restart is handling it."""
        if slot.mending is not None:
            slot.mending.cancel()

    def fill(self) -> None:
        """Start replacements in all slots without a serving process."""
        served = {self.children[child].number for child in self.serving_workers()}
        for slot in self.slots:
            if slot.number not in served:
                self._mend(slot, f"Worker {slot.number} is missing")

    async def end(self, force: asyncio.Event, sockets: Sequence[socket.socket]) -> None:
        """Stop all processes: gracefully, or by force once `force` is set, or by the kernel.

        The sockets are closed when no process accepts any more, so that connections are refused instead of waiting.
        """
        self._stopping = True
        for slot in self.slots:
            self.stop_mending(slot)
        children = list(self.children)
        for child in children:
            child.drain(replaced=False)
        closing = self._tasks.spawn(_close(children, sockets))
        everyone, forced = asyncio.gather(*[child.ended for child in children]), asyncio.create_task(force.wait())
        patience = max((child.patience for child in children), default=0.0) + GRACE
        await asyncio.wait((everyone, forced), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if forced.done():
            for child in children:
                child.force()
            await asyncio.wait((everyone,), timeout=LAST_SECONDS)
        for child in children:
            if not child.ended.done():
                _kill(child)
        await everyone
        await closing
        forced.cancel()
        await self._tasks.close()

    async def _look_after(self, child: WorkerProcess) -> None:
        """Supervise a process from start to end, and handle its exit."""
        slot = self.children[child]
        try:
            await child.ready()
        except NotStarted:
            served = False  # reported to the caller of `begin`
        else:
            served = True
            slot.back_off.serves()
            self._tell()
            if child.watchdog:
                self._tasks.spawn(self._watch(child))
        status = await child.ended
        del self.children[child]
        self._tell()
        if served and not child.leaves:
            self._mend(slot, f"{child} {how(status)}")

    async def _watch(self, child: WorkerProcess) -> None:
        if await child.stands_still():
            logger.error("%s has been unresponsive for %g s and will be killed", child, child.watchdog)
            child.signal(signal.SIGKILL)

    def _handle_departure(self, child: WorkerProcess) -> None:
        """Handle a process that announced its exit or received SIGTERM."""
        if not child.leaves:
            child.leaves = True
            self._mend(self.children[child], f"{child} was stopped")
        self._tell()

    def _mend(self, slot: Slot, why: str) -> None:
        """Start a replacement for a slot, unless there's already a process or a replacement."""
        looking = slot.mending is not None and not slot.mending.done()
        taken = any(place is slot and not child.leaves for child, place in self.children.items())
        if not (self._stopping or looking or taken):
            slot.mending = self._tasks.spawn(self._replace(slot, why))

    async def _replace(self, slot: Slot, why: str) -> None:
        """Start processes until one is ready."""
        slot.restarts += 1
        while True:
            seconds = slot.back_off.record_death()
            if seconds and slot.own:
                self._refuse(slot)
            logger.error("%s; starting another%s", why, f" in {seconds:g} s" if seconds else "")
            await asyncio.sleep(seconds)
            child: WorkerProcess | None = None
            try:
                child = self.begin(slot)
                await child.ready()
            except NotStarted as exc:
                why = exc.error.what.rstrip(".")
                tell_failure(exc.error)
            except asyncio.CancelledError:
                if child is not None:
                    child.drain(replaced=False)
                    self._tasks.spawn(self._see_out(child))
                raise
            else:
                logger.info("%s is ready", child)
                if not (child.leaves or child.ended.done()):
                    return
                why = f"{child} has stopped again"

    def _refuse(self, slot: Slot) -> None:
        """Refuse connections in this slot while no worker is left to take over, including waiting ones. The next worker
        makes the socket listen again.
        """
        if self.serving_workers():
            return
        for listener in slot.listeners:
            # A socket that is shut down twice hands out connections that are shut down.
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.shutdown(socket.SHUT_RD)

    async def _see_out(self, child: WorkerProcess) -> None:
        """Kill a process that doesn't end in time."""
        done, _ = await asyncio.wait((child.ended,), timeout=child.patience + GRACE)
        if not done:
            _kill(child)

    def _tell(self) -> None:
        """Send all workers the state of all."""
        order = sorted(self.children.items(), key=lambda each: (each[1].number, each[0].pid))
        seats = [WorkerState(slot.number, child.pid, child.state, slot.restarts) for child, slot in order]
        for child in self.children:
            child.tell(WorkerStates(seats))


async def _close(children: Sequence[WorkerProcess], sockets: Sequence[socket.socket]) -> None:
    await asyncio.gather(*[child.left.wait() for child in children])
    for each in sockets:
        each.close()


def _kill(child: WorkerProcess) -> None:
    logger.error("%s didn't stop in time and will be killed", child)
    child.signal(signal.SIGKILL)


def tell_failure(error: CommandError) -> None:
    """Report why a worker didn't start: as usual on a terminal, and in one line to a log."""
    if sys.stderr.isatty():
        report(error)
    else:
        parts = {"why": error.why, "fix": error.fix, "detail": error.detail}
        logger.error("%s", error.what, extra={name: text for name, text in parts.items() if text})
