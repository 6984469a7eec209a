"""Socket takeover: accepting connections for a dead worker until its replacement is ready.

The kernel keeps assigning a share of new connections to the socket of a dead worker, because the parent holds it open.
They would wait while a process starts. Every worker therefore has the sockets of all others, and the next serving one
accepts from them in the meantime.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Mapping, Sequence

from millstream._app.server_process.http_server import Accept
from millstream._app.server_process.workers.messages import WorkerState

READY = "ready"

logger = logging.getLogger("millstream")


class SocketTakeover:
    """Takeover by this worker for the others."""

    def __init__(self, me: int, others: Mapping[int, Sequence[socket.socket]]) -> None:
        """Create it; `begin` starts accepting.

        Args:
            me: slot of this worker.
            others: sockets of each other slot.
        """
        # Configuration
        self._me = me
        self._others = others
        self._accept: Accept | None = None
        # State
        self._wanted: frozenset[int] = frozenset()
        self._serving: dict[int, list[Callable[[], None]]] = {}
        """Slot -> function that stops accepting for it."""
        self._task: asyncio.Task[None] | None = None

    def begin(self, accept: Accept) -> None:
        """Start taking over, because this worker serves from now on."""
        self._accept = accept
        self._go()

    def end(self) -> None:
        """Stop taking over. Connections accepted so far end with this worker's own sockets."""
        self._accept = None

    def close(self) -> None:
        """Close the others' sockets. As long as any process holds them, the kernel assigns connections to them."""
        self.end()
        for listener in (each for listeners in self._others.values() for each in listeners):
            listener.close()

    def look(self, seats: Collection[WorkerState]) -> None:
        """Update the state of all workers."""
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
                logger.info("Also accepting for worker %d until it serves", place)


def stands_in(place: int, seats: Collection[WorkerState]) -> int | None:
    """Return the slot that accepts for one without a serving worker: the next serving one. None if it's serving
    itself.
    """
    ready = sorted({seat.worker for seat in seats if seat.state == READY})
    if place in ready or not ready:
        return None
    return next((each for each in ready if each > place), ready[0])
