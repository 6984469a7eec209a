"""The dashboard of all workers that share a store: whichever of them is asked shows the sums, and a row for each.

A worker whose dashboard is watched says so every two seconds; each of the others then sends it its figures once a
second, until it has heard nothing for five. So nothing travels while nobody watches. The figures of a worker count as
long as they are fresh and its lease lasts: what a worker counted goes with it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from heapq import nlargest
from time import monotonic
from typing import Any, Final, Protocol

import msgspec

from millstream._protocol.errors import LocalError
from millstream._server.observing.figures import Figures, present
from millstream._server.peer_messages import Measured, Watched
from millstream._server.peers import Peers
from millstream._stores.base import Workers
from millstream._stores.health import Trouble

INTERVAL: Final = 1.0
SAY_EVERY: Final = 2.0
HEARD: Final = 5.0
"""Seconds after which what another worker said counts no more."""
MAX_WORKERS: Final = 256
"""More than these aren't shown; of more than these nobody's dashboard is served."""
MAX_CHANNELS: Final = 100
"""What a worker tells of its channels: those with the most subscribers."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Figures).decode

logger = logging.getLogger("millstream")


class Taken(Protocol):
    """`Observer.figures`."""

    def __call__(self, *, hub: dict[str, Any] | None = None, sketched: bool = False) -> Figures: ...


class Fleet:
    """The figures of this worker, and of the others while somebody watches."""

    __slots__ = ("_asked", "_clock", "_hub", "_others", "_own", "_peers", "_said", "_take", "_taken", "_watching",
                 "_workers")  # fmt: skip

    def __init__(
        self,
        peers: Peers,
        workers: Workers,
        take: Taken,
        *,
        hub: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """It sends nothing before `watch` or `run`.

        Args:
            peers: the other workers.
            workers: of the store.
            take: gives the figures of this worker.
            hub: gives those of the hub.
            clock: seconds that only grow.
        """
        # Configuration
        self._peers = peers
        self._workers = workers
        self._take = take
        self._hub = hub
        self._clock = clock
        # Process
        self._own: Figures | None = None
        self._taken = 0.0
        """When these were taken."""
        self._said = -SAY_EVERY
        """When the others last heard that somebody watches."""
        self._others: dict[str, tuple[float, Figures]] = {}
        """Worker -> when its figures came, and what they are."""
        self._watching: dict[str, float] = {}
        """Worker -> when it said that its dashboard is watched."""
        self._asked = asyncio.Event()
        peers.on(Watched, lambda message, worker: self._hear_watched(worker))
        peers.on(Measured, self._hear_measured)
        peers.on_workers(self._forget_the_dead)

    # Somebody watches here

    def watch(self) -> None:
        """Somebody watches: call it about once a second while that is so."""
        now = self._clock()
        if now - self._said >= SAY_EVERY:
            self._said = now
            self._peers.tell_soon(Watched())

    def snapshot(self, *, store: Any = None) -> dict[str, Any]:
        """What the dashboard shows: the figures of this worker now, and the newest ones of the others."""
        me = self._workers.me
        self._forget_the_silent()
        named = {name: figures for name, (_, figures) in self._others.items()}
        return present({**named, me: self._figures()}, me, store=store)

    def _hear_measured(self, message: Measured, worker: str) -> None:
        try:
            figures = _decode(message.figures)
        except msgspec.DecodeError:  # of another version, during a deploy
            return
        self._others.pop(worker, None)
        if len(self._others) < MAX_WORKERS:
            self._others[worker] = (self._clock(), figures)

    def _forget_the_silent(self) -> None:
        now = self._clock()
        self._others = {name: each for name, each in self._others.items() if now - each[0] <= HEARD}

    async def _forget_the_dead(self) -> None:
        self._forget_the_silent()
        for name in list(self._others):
            if not await self._workers.alive(name):
                self._others.pop(name, None)

    # Somebody watches elsewhere

    async def run(self) -> None:
        """Send the figures to whoever shows them, until cancelled. The runtime owns the task."""
        trouble = Trouble(
            logger,
            "The figures can't be sent to the other workers, which is tried again",
            "The figures are sent again.",
        )
        while True:
            await self._asked.wait()
            try:
                with trouble:
                    await self.send()
            except Exception:
                logger.exception("The figures could not be sent to the other workers; the next second tries again")
            await asyncio.sleep(INTERVAL)

    async def send(self) -> None:
        """Send the figures of now to each worker whose dashboard is watched."""
        now = self._clock()
        self._watching = {name: heard for name, heard in self._watching.items() if now - heard <= HEARD}
        if not self._watching:
            self._asked.clear()
            return
        message = Measured(_encode(_bounded(self._figures())))
        for name in list(self._watching):
            try:
                lives = await self._peers.send(name, message)
            except (LocalError, OSError):
                logger.debug("A dashboard didn't get the figures of this worker", exc_info=True)
                continue
            if not lives:
                self._watching.pop(name, None)

    def _hear_watched(self, worker: str) -> None:
        if worker in self._watching or len(self._watching) < MAX_WORKERS:
            self._watching[worker] = self._clock()
            self._asked.set()

    def _figures(self) -> Figures:
        """Those of this second: taken once for all who show them."""
        now = self._clock()
        if self._own is None or now - self._taken >= INTERVAL / 2:
            self._own, self._taken = self._take(hub=self._hub(), sketched=self._peers.shared), now
        return self._own


def _bounded(figures: Figures) -> Figures:
    """Without channels that hardly anybody subscribes to: there may be one for each client."""
    hub = figures.hub
    if hub is None or len(hub["channels"]) <= MAX_CHANNELS:
        return figures
    return msgspec.structs.replace(figures, hub={**hub, "channels": _largest(hub["channels"])})


def _largest(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(nlargest(MAX_CHANNELS, counts.items(), key=lambda item: (item[1], item[0])))
