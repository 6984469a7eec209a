"""From the journal to the outlets of this worker.

Each event is encoded once for each kind of outlet, and one plain loop writes the same bytes to all of that kind.
Whoever is too far behind is ended with a last event that says why, and can resume; the others do not feel it.
"""

import asyncio
import logging
from collections.abc import Callable

from millstream.hub.audience import Audience
from millstream.hub.event import Event, cut, gap
from millstream.hub.journal import Journal
from millstream.hub.subscriber import Outlet
from millstream.protocol.errors import LocalError
from millstream.stores.base import Bus, Gap

TOPIC = "hub"
SLOW = "slow"
_PAUSE = 1.0
"""Seconds until a store that failed is asked again."""

_logger = logging.getLogger("millstream.hub")


class Delivery:
    """Reads the journal and writes to the audience."""

    __slots__ = (
        "_audience", "_bus", "_journal", "_lock", "_max_buffered", "_more", "_task", "_unsubscribe", "cut", "delivered",
        "gaps",
    )  # fmt: skip

    def __init__(self, bus: Bus, journal: Journal, audience: Audience, *, max_buffered: int) -> None:
        # configuration
        self._bus = bus
        self._journal = journal
        self._audience = audience
        self._max_buffered = max_buffered
        # process
        self._lock = asyncio.Lock()
        """One reader of the journal at a time keeps the order."""
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self.delivered = 0
        self.gaps = 0
        self.cut: dict[str, int] = {}

    async def open(self) -> None:
        """Listen, and go to the end of the journal."""
        self._unsubscribe = self._bus.subscribe(TOPIC, self._hear, interrupted=self._more.set)
        await self._journal.open()
        self._task = asyncio.create_task(self._attend())

    async def close(self) -> None:
        """Stop."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def announce(self, offset: int) -> None:
        """Deliver up to an event that was just appended, and let the other workers know."""
        await self.catch_up()
        await self._bus.publish(TOPIC, b"%d" % offset)

    async def catch_up(self) -> None:
        """Deliver everything that the journal has new."""
        async with self._lock:
            more = True
            while more:
                try:
                    events, more = await self._journal.read_on()
                except Gap:
                    self.gaps += 1
                    _logger.warning("The journal of the hub was cut behind this worker: its subscribers get a gap.")
                    self._write(gap("lost"), None)
                    continue
                for event in events:
                    self._journal.advance(event)
                    self._write(event, event.channel)

    def tell_place(self) -> None:
        """Write the id of the present place to everyone."""
        self._write(self._journal.place(), None)

    def _write(self, event: Event, channel: str | None) -> None:
        """Write to the subscribers of a channel, or to all."""
        most = self._max_buffered
        slow: list[Outlet] = []
        for encode, outlets in self._audience.everyone() if channel is None else self._audience.plan(channel):
            chunk = encode(event)
            if not chunk:
                continue
            for outlet in outlets:
                outlet.write(chunk)
                if outlet.buffered > most:
                    slow.append(outlet)
            self.delivered += len(outlets)
        for outlet in slow:
            self._end(outlet, SLOW)

    def _end(self, outlet: Outlet, reason: str) -> None:
        sharing = self._audience.on(outlet)
        if sharing:
            self.cut[reason] = self.cut.get(reason, 0) + 1
            sharing[0].write(cut(reason))
            sharing[0].close()

    def _hear(self, data: bytes) -> None:
        if int(data) > self._journal.offset:
            self._more.set()

    async def _attend(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            try:
                await self.catch_up()
            except (LocalError, OSError):
                _logger.exception("The hub could not read its journal.")
                await asyncio.sleep(_PAUSE)
                self._more.set()
