"""The workers of one address: their places, the processes in them, and who follows on one that dies."""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

from millstream._app.serving.errors import CommandError, report
from millstream._app.serving.runner import LAST_SECONDS
from millstream._app.serving.workers.back_off import BackOff
from millstream._app.serving.workers.messages import Hello, Roster, Seat
from millstream._app.serving.workers.worker_process import READY, NotStarted, WorkerProcess, how

logger = logging.getLogger("millstream")

GRACE: Final = 5.0
"""Seconds beyond a worker's own patience before it's killed."""


class Slot:
    """The place of one worker: what it accepts from, and whether somebody looks for the next one."""

    def __init__(self, number: int, listeners: Sequence[socket.socket], *, own: bool) -> None:
        self.number = number
        self.listeners = listeners
        self.own = own
        """Nobody else accepts from them, in this program or in another."""
        self.restarts = 0
        self.back_off = BackOff(time.monotonic)
        self.mending: asyncio.Task[None] | None = None
        """Looks for a replacement."""


class WorkerPool:
    """Starts processes, and replaces those that die."""

    def __init__(
        self, command: Sequence[str], slots: Sequence[Slot], hello: Hello, *, environment: Mapping[str, str]
    ) -> None:
        """Nothing starts yet.

        Args:
            command: what starts a worker.
            slots: one for each worker.
            hello: what all of them are to be.
            environment: variables beside the parent's own.
        """
        # configuration
        self._command = command
        self._hello = hello
        self._environment = environment
        # process
        self.slots = slots
        self.children: dict[WorkerProcess, Slot] = {}
        """All that have not ended, those on their way out included."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def begin(self, slot: Slot) -> WorkerProcess:
        """Start a process. It looks after itself: should it serve and die, another follows.

        Raises:
            NotStarted: the system has no room for one.
        """
        numbers = {each.number: [listener.fileno() for listener in each.listeners] for each in self.slots}
        mine = numbers.pop(slot.number)
        others = numbers if slot.own else {}  # where all accept from the same, nobody has to stand in
        hello = msgspec.structs.replace(self._hello, worker=slot.number, listeners=mine, others=others)
        try:
            child = WorkerProcess(self._command, hello, environment=self._environment, on_left=self._left)
        except OSError as exc:
            raise NotStarted(CommandError(f"Worker {slot.number} cannot be started.", why=str(exc))) from exc
        self.children[child] = slot
        self._spawn(self._look_after(child))
        return child

    def serving(self) -> list[WorkerProcess]:
        """Those that serve, and are to go on."""
        return [child for child in self.children if child.state == READY and not child.leaves]

    def leave(self, children: Sequence[WorkerProcess]) -> None:
        """Let some go that others have taken over from."""
        for child in children:
            child.drain(replaced=True)
            self._spawn(self._see_out(child))

    def stop_mending(self, slot: Slot) -> None:
        """Look for nobody in this place: who comes next has been decided."""
        if slot.mending is not None:
            slot.mending.cancel()

    def fill(self) -> None:
        """Look for somebody in each place where nobody serves."""
        served = {self.children[child].number for child in self.serving()}
        for slot in self.slots:
            if slot.number not in served:
                self._mend(slot, f"Worker {slot.number} is missing")

    async def end(self, force: asyncio.Event, sockets: Sequence[socket.socket]) -> None:
        """Stop all: in order, by force once `force` is set, or by the kernel.

        The sockets are closed as soon as nobody accepts any more: connections are refused then, and not kept waiting.
        """
        self._stopping = True
        for slot in self.slots:
            self.stop_mending(slot)
        children = list(self.children)
        for child in children:
            child.drain(replaced=False)
        closing = self._spawn(_close(children, sockets))
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
        for task in (forced, *self._tasks):
            task.cancel()
        await asyncio.gather(forced, *self._tasks, return_exceptions=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_after(self, child: WorkerProcess) -> None:
        """From the start of a process to its end, and what follows from that."""
        slot = self.children[child]
        try:
            await child.ready()
        except NotStarted:
            served = False  # whoever has begun it knows
        else:
            served = True
            slot.back_off.serves()
            self._tell()
            if child.watchdog:
                self._spawn(self._watch(child))
        status = await child.ended
        del self.children[child]
        self._tell()
        if served and not child.leaves:
            self._mend(slot, f"{child} {how(status)}")

    async def _watch(self, child: WorkerProcess) -> None:
        if await child.stands_still():
            logger.error("%s has stood still for %g s, and is killed", child, child.watchdog)
            child.signal(signal.SIGKILL)

    def _left(self, child: WorkerProcess) -> None:
        """One goes: the parent said so, or somebody sent it SIGTERM."""
        if not child.leaves:
            child.leaves = True
            self._mend(self.children[child], f"{child} was told to stop")
        self._tell()

    def _mend(self, slot: Slot, why: str) -> None:
        """Look for somebody in a place, unless somebody is there, starts, or is being looked for."""
        looking = slot.mending is not None and not slot.mending.done()
        taken = any(place is slot and not child.leaves for child, place in self.children.items())
        if not (self._stopping or looking or taken):
            slot.mending = self._spawn(self._replace(slot, why))

    async def _replace(self, slot: Slot, why: str) -> None:
        """Start processes until one is ready."""
        slot.restarts += 1
        while True:
            seconds = slot.back_off.died()
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
                    self._spawn(self._see_out(child))
                raise
            else:
                logger.info("%s is ready", child)
                if not (child.leaves or child.ended.done()):
                    return
                why = f"{child} has gone again"

    def _refuse(self, slot: Slot) -> None:
        """Nobody will accept here for a while, for nobody is left who would stand in. Connections are refused now, and
        those that wait already end. The next worker makes the socket listen again.
        """
        if self.serving():
            return
        for listener in slot.listeners:
            # A socket that is shut twice hands out connections that are shut.
            if listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.shutdown(socket.SHUT_RD)

    async def _see_out(self, child: WorkerProcess) -> None:
        """One that doesn't end in its time is killed."""
        done, _ = await asyncio.wait((child.ended,), timeout=child.patience + GRACE)
        if not done:
            _kill(child)

    def _tell(self) -> None:
        """Let all know how all are."""
        order = sorted(self.children.items(), key=lambda each: (each[1].number, each[0].pid))
        seats = [Seat(slot.number, child.pid, child.state, slot.restarts) for child, slot in order]
        for child in self.children:
            child.tell(Roster(seats))


async def _close(children: Sequence[WorkerProcess], sockets: Sequence[socket.socket]) -> None:
    await asyncio.gather(*[child.left.wait() for child in children])
    for each in sockets:
        each.close()


def _kill(child: WorkerProcess) -> None:
    logger.error("%s did not end in time, and is killed", child)
    child.signal(signal.SIGKILL)


def tell_failure(error: CommandError) -> None:
    """Say why a worker didn't start: to a person as ever, to a machine in one line."""
    if sys.stderr.isatty():
        report(error)
    else:
        parts = {"why": error.why, "fix": error.fix, "detail": error.detail}
        logger.error("%s", error.what, extra={name: text for name, text in parts.items() if text})
