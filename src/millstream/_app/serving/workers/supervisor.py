"""The parent of several workers: it starts all, replaces all when it's told to, and stops them.

It runs no code of the user (a script that calls ``run(workers=…)`` has run up to there). The first worker goes ahead,
so that an error at the start shows once; the others follow together. A replacement accepts from the socket of the one
that it replaces, before that one stops accepting, so at no time is a connection refused.
"""

import asyncio
import logging
import secrets
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from millstream._app.serving.errors import CommandError
from millstream._app.serving.facts import Facts, registration
from millstream._app.serving.panel import show
from millstream._app.serving.signals import INTERRUPTED
from millstream._app.serving.workers.commands import Orders
from millstream._app.serving.workers.messages import Hello, Ready
from millstream._app.serving.workers.worker_pool import Slot, WorkerPool, tell_failure
from millstream._app.serving.workers.worker_process import NotStarted, WorkerProcess

if TYPE_CHECKING:
    from millstream._app.serving.consul import ConsulRegistration

logger = logging.getLogger("millstream")

STARTS: Final = 5
"""Processes that are started for one place, if all of them are killed, before the whole is given up."""
OVERTAKEN: Final = 5.0
"""Seconds that a start may still take when the next restart is ordered: a program that hangs must not keep its mended
version from being started, and orders that come fast must not keep a good one from getting ready.
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
        """Nothing starts before `run`.

        Args:
            command: what starts a worker.
            slots: one for each worker.
            host: the address as it was given: it decides who counts as local.
            run: which ``run()`` of the program this is.
            store: opens what the workers share, around their whole life, and gives its address.
            changes: yields whenever the program has changed.
            told: hears once that the workers serve.
        """
        # configuration
        self._command = command
        self._slots = slots
        self._host = host
        self._run = run
        self._changes = changes
        self._told = told
        self._store = store
        # process
        self._crew: WorkerPool
        self._registration: ConsulRegistration | None = None
        self._chores: list[asyncio.Task[Any]] = []

    async def run(self) -> None:
        """Serve until stopped.

        Raises:
            CommandError: a worker cannot start.
            SystemExit: a second signal ended it without draining.
        """
        async with AsyncExitStack() as stack:
            orders = stack.enter_context(Orders().heard())
            try:
                store = await stack.enter_async_context(self._store())
            except OSError as exc:
                raise CommandError(
                    "The parent of the workers has no place for the socket of its store.",
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
        # Python takes compiled code for fresh if the file has the size and the second of change that it knows.
        environment = {"PYTHONDONTWRITEBYTECODE": "1"} if self._changes is not None else {}
        return WorkerPool(self._command, self._slots, hello, environment=environment)

    async def _start(self, orders: Orders) -> None:
        first, *others = self._slots
        changes = None if self._changes is None else self._changes()  # since before the first worker reads the program
        try:
            ready = await self._begin(first)
            await asyncio.gather(*[self._begin(slot) for slot in others])
        except NotStarted as exc:
            raise exc.error from None
        self._told(msgspec.structs.replace(ready.facts, workers=[child.pid for child in self._crew.children]))
        port = first.listeners[0].getsockname()[1]
        self._registration = registration(
            ready.consul, ready.facts, self._host, port, lambda: bool(self._crew.serving())
        )
        if self._registration is not None:
            self._registration.open()
        self._chores.append(asyncio.create_task(self._keep_restarting(orders)))
        if changes is not None:
            self._chores.append(asyncio.create_task(self._watch(changes, orders)))

    async def _begin(self, slot: Slot) -> Ready:
        """Start a worker for the first time. If somebody kills it, which says nothing of the program, another follows.

        Raises:
            NotStarted: it cannot start, or was killed again and again.
        """
        for left in reversed(range(STARTS)):
            try:
                return await self._crew.begin(slot).ready()
            except NotStarted as exc:
                if not (exc.killed and left):
                    raise
                logger.error("%s; starting another", exc.error.what.rstrip("."))
            await asyncio.sleep(slot.back_off.died())
        raise AssertionError

    async def _end(self, orders: Orders) -> None:
        for chore in self._chores:
            chore.cancel()
        if self._registration is not None:
            await self._registration.close()
        await self._crew.end(orders.force, [each for slot in self._slots for each in slot.listeners])
        await asyncio.gather(*self._chores, return_exceptions=True)

    async def _watch(self, changes: AsyncIterator[None], orders: Orders) -> None:
        async for _ in changes:
            logger.info("The program has changed")
            orders.restart.set()

    async def _keep_restarting(self, orders: Orders) -> None:
        while True:
            await orders.restart.wait()
            orders.restart.clear()
            await self._restart(orders)

    async def _restart(self, orders: Orders) -> None:
        """A new process beside each worker, one after the other; when all are ready, the old ones go.

        They go together, because the clients of one that goes alone come back to those that are still to go.
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
                await self._succeed(slot, new, orders)
            except NotStarted as exc:
                if exc.killed:  # which says nothing of the program
                    logger.error("%s; starting another", exc.error.what.rstrip("."))
                    continue
                tell_failure(exc.error)
                logger.error("Nothing has changed: the workers that served go on")
                crew.leave(new)
                crew.fill()
                return
        old = [child for child in crew.serving() if child not in new]  # also those that somebody's death has brought
        crew.leave(old)
        crew.fill()  # a new one may have died meanwhile
        await asyncio.gather(*[child.left.wait() for child in old])
        logger.info("Every worker is new: %s", ", ".join(str(child.pid) for child in crew.serving()))

    def _without_successor(self, new: Sequence[WorkerProcess]) -> Slot | None:
        """The first place in which none of the `new` serves."""
        crew = self._crew
        there = {crew.children[child].number for child in crew.serving() if child in new}
        return next((slot for slot in self._slots if slot.number not in there), None)

    async def _succeed(self, slot: Slot, new: list[WorkerProcess], orders: Orders) -> None:
        """Start a process that is to take over, one of the `new`, unless there's a newer order before it's ready.

        Raises:
            NotStarted: it cannot start, or is given up.
        """
        new.append(child := self._crew.begin(slot))
        ready = asyncio.create_task(child.ready())
        overtaken = asyncio.create_task(_some_time_after(orders.restart))
        try:
            await asyncio.wait((ready, overtaken), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                what = f"Worker {slot.number} didn't get ready, and is given up for the next restart."
                raise NotStarted(CommandError(what, why="Your program still starts, or hangs."))
            ready.result()
        finally:
            ready.cancel()
            overtaken.cancel()


def _given_up(slot: Slot) -> NotStarted:
    what = f"Each new process for worker {slot.number} was ended before all were ready."
    return NotStarted(CommandError(what, why="Somebody ends them, or the kernel, which is short of memory."))


async def _some_time_after(event: asyncio.Event) -> None:
    await event.wait()
    await asyncio.sleep(OVERTAKEN)


def slots_of(sockets: Sequence[socket.socket], workers: int, *, passed: bool) -> list[Slot]:
    """The places of so many workers: with a socket of its own each, or with all that there are."""
    if not passed and len(sockets) == workers:
        return [Slot(number, [each], own=True) for number, each in enumerate(sockets, 1)]
    return [Slot(number, sockets, own=False) for number in range(1, workers + 1)]
