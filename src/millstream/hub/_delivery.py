"""Delivery from the journal to the outlets of this worker.

Each event is encoded once per kind of outlet, and one plain loop writes the same bytes to all outlets of that kind. A
subscriber that is too far behind gets a last event with the reason, and can resume. Other subscribers are unaffected.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from millstream._http.message import Outlet
from millstream._stores.base import Entry, Gap, Store
from millstream._stores.tail import Tail
from millstream.hub._audience import Audience
from millstream.hub._backlog import UnreadBacklog
from millstream.hub._channels import CLIENT
from millstream.hub._event import Event, cut, gap
from millstream.hub._journal import JOURNAL, Journal
from millstream.hub._limits import HubLimits
from millstream.hub._mailbox import Mailboxes
from millstream.hub._presence_changes import STREAM, PresenceChanges
from millstream.hub._reader import JournalReader

SLOW = "slow"

_logger = logging.getLogger("millstream.hub")


class Delivery:
    """Reads the journal and presence changes, and writes them to the audience."""

    __slots__ = (
        "_arrivals", "_audience", "_journal", "_mailboxes", "_max_buffered", "_reader", "_store", "_tasks", "backlog",
        "cut", "delivered", "events", "gaps", "visits",
    )  # fmt: skip

    events: Tail
    """The reader of the journal. After `Tail.reach`, an event has been delivered."""
    visits: Tail
    """The reader of presence changes."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        reader: JournalReader,
        arrivals: PresenceChanges,
        mailboxes: Mailboxes,
        audience: Audience,
        *,
        limits: HubLimits,
    ) -> None:
        # configuration
        self._store = store
        self._journal = journal
        self._reader = reader
        self._arrivals = arrivals
        self._mailboxes = mailboxes
        self._audience = audience
        self._max_buffered = limits.max_buffered
        # process
        self._tasks: list[asyncio.Task[None]] = []
        self.backlog = UnreadBacklog(limits.max_unread, audience.outlets, partial(self._end, reason=SLOW))
        self.delivered = 0
        self.gaps = 0
        self.cut: dict[str, int] = {}

    async def open(self) -> None:
        """Start listening at the end of both streams."""
        self.events = Tail(self._store.log, JOURNAL, None, self._take, self._on_gap)
        self.visits = Tail(self._store.log, STREAM, None, self._take_changes, self._on_changes_lost)
        self.events.position = await self._journal.open()
        self.visits.position = await self._arrivals.open(self._journal.epoch)
        await self.catch_up()
        self._tasks = [asyncio.create_task(tail.run()) for tail in (self.events, self.visits)]

    async def close(self) -> None:
        """Stop the readers."""
        for tail in (self.events, self.visits):
            tail.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def catch_up(self) -> None:
        """Deliver all new entries of the two streams."""
        await self.events.catch_up()
        await self.visits.catch_up()

    def _take(self, entries: Sequence[Entry]) -> None:
        take, write = self._journal.take, self._write
        for entry in entries:
            event = take(entry)
            if event is None:
                continue
            write(event, event.channel)
            if event.channel.startswith(CLIENT):
                self._mailboxes.mark_delivered(event.channel.removeprefix(CLIENT))

    def _take_changes(self, entries: Sequence[Entry]) -> None:
        journal = self._journal
        for entry in entries:
            event = self._arrivals.take(entry, journal.epoch, journal.offset)
            self._write(event, event.channel)

    def _on_gap(self, loss: Gap) -> None:
        self._journal.reset(loss)
        self._reader.forget()
        self._arrivals.forget(self._journal.offset)  # their positions in the journal are invalid now
        self._tell_loss("journal")

    def _on_changes_lost(self, loss: Gap) -> None:
        self._arrivals.forget(self._journal.offset)
        self._tell_loss("stream of arrivals")

    def _tell_loss(self, what: str) -> None:
        self.gaps += 1
        _logger.warning(
            "Entries of the hub's %s were dropped before this worker read them. Its subscribers get a gap.", what
        )
        self._write(gap("lost"), None)

    def tell_place(self) -> None:
        """Write the id of the current position to all subscribers."""
        self._write(self.place(), None)

    def place(self) -> Event:
        """Return an event with this worker's position, so subscribers can resume before the first event."""
        journal = self._journal
        return Event("", None, None, self._arrivals.mark(journal.place(), journal.offset), journal.offset)

    def _write(self, event: Event, channel: str | None) -> None:
        """Write to the subscribers of a channel, or to all."""
        most = self._max_buffered
        written = 0
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
            written += len(chunk) * len(outlets)
        for outlet in slow:
            self._end(outlet, SLOW)
        self.backlog.add(written)

    def _end(self, outlet: Outlet, reason: str) -> None:
        sharing = self._audience.on(outlet)
        if sharing:
            self.cut[reason] = self.cut.get(reason, 0) + 1
            sharing[0].write(cut(reason))
            sharing[0].close()
