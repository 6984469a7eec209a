"""Accepting for a worker that is gone, until the next one in its place is ready.

The kernel goes on giving a share of all new connections to the socket of a dead worker, since the parent keeps it. They
would wait for as long as a process takes to start. So every worker has the sockets of all the others, and the one in
the next place that serves accepts from them meanwhile.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping, Sequence

from millstream._app.serving.http_server import Accept
from millstream._app.serving.workers.messages import Seat

READY = "ready"

logger = logging.getLogger("millstream")


class SocketTakeover:
    """What this worker does for the others."""

    __slots__ = ("_accept", "_me", "_others", "_serving", "_task", "_wanted")

    def __init__(self, me: int, others: Mapping[int, Sequence[socket.socket]]) -> None:
        """Nothing is accepted before `begin`.

        Args:
            me: the place of this worker.
            others: the sockets of each other place.
        """
        # configuration
        self._me = me
        self._others = others
        self._accept: Accept | None = None
        # process
        self._wanted: frozenset[int] = frozenset()
        self._serving: dict[int, list[Callable[[], None]]] = {}
        """WorkerSlot -> what ends accepting for it."""
        self._task: asyncio.Task[None] | None = None

    def begin(self, accept: Accept) -> None:
        """This worker serves from now on."""
        self._accept = accept
        self._go()

    def end(self) -> None:
        """This worker goes: it stands in for nobody else. What it accepts from already ends with its own sockets."""
        self._accept = None

    def close(self) -> None:
        """Let go of the others' sockets: as long as anybody has them, the kernel takes connections for them."""
        self.end()
        for listener in (each for listeners in self._others.values() for each in listeners):
            listener.close()

    def look(self, seats: Collection[Seat]) -> None:
        """How all workers are now."""
        self._wanted = frozenset(place for place in self._others if stands_in(place, seats) == self._me)
        self._go()

    def _go(self) -> None:
        if (
            self._accept is not None
            and (self._task is None or self._task.done())
            and self._wanted != frozenset(self._serving)
        ):
            self._task = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        while (accept := self._accept) is not None and self._wanted != frozenset(self._serving):
            for place in set(self._serving) - self._wanted:
                for stop in self._serving.pop(place):
                    stop()
            for place in self._wanted - set(self._serving):
                self._serving[place] = [await accept(each) for each in self._others[place]]
                logger.info("Accepting for worker %d, too, until it serves", place)


def stands_in(place: int, seats: Collection[Seat]) -> int | None:
    """Who accepts for a place where nobody serves: the next one that does. None where somebody serves there."""
    ready = sorted({seat.worker for seat in seats if seat.state == READY})
    if place in ready or not ready:
        return None
    return next((each for each in ready if each > place), ready[0])
