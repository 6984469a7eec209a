"""Delivery from the journal to the outlets of this worker.

Each event is encoded once per kind of outlet, and a plain loop writes the same bytes to all outlets of that kind. A
subscriber that falls too far behind gets a final event with the reason and can resume. Others are unaffected.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from millstream._http.message import Outlet
from millstream._stores.base import Entry, Gap, Store
from millstream._stores.tail import Tail
from millstream._tasks import cancel_all
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

    event_tail: Tail
    """The reader of the journal. `Tail.reach` returns after an event has been delivered."""
    change_tail: Tail
    """The reader of presence changes."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        reader: JournalReader,
        presence_changes: PresenceChanges,
        mailboxes: Mailboxes,
        audience: Audience,
        *,
        limits: HubLimits,
    ) -> None:
        # configuration
        self._store = store
        self._journal = journal
        self._reader = reader
        self._presence_changes = presence_changes
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
        self.event_tail = Tail(self._store.log, JOURNAL, None, self._deliver_entries, self._on_gap)
        self.change_tail = Tail(self._store.log, STREAM, None, self._deliver_changes, self._on_changes_lost)
        self.event_tail.position = await self._journal.open()
        self.change_tail.position = await self._presence_changes.open(self._journal.epoch)
        await self.catch_up()
        self._tasks = [asyncio.create_task(tail.run()) for tail in (self.event_tail, self.change_tail)]

    async def close(self) -> None:
        """Stop the readers."""
        for tail in (self.event_tail, self.change_tail):
            tail.stop()
        await cancel_all(*self._tasks)

    async def catch_up(self) -> None:
        """Deliver all new entries of the two streams."""
        await self.event_tail.catch_up()
        await self.change_tail.catch_up()

    def _deliver_entries(self, entries: Sequence[Entry]) -> None:
        take, write = self._journal.add, self._write
        for entry in entries:
            event = take(entry)
            if event is None:
                continue
            write(event, event.channel)
            if event.channel.startswith(CLIENT):
                self._mailboxes.mark_delivered(event.channel.removeprefix(CLIENT))

    def _deliver_changes(self, entries: Sequence[Entry]) -> None:
        journal = self._journal
        for entry in entries:
            event = self._presence_changes.add(entry, journal.epoch, journal.offset)
            self._write(event, event.channel)

    def _on_gap(self, loss: Gap) -> None:
        self._journal.reset(loss)
        self._reader.forget()
        self._presence_changes.forget(self._journal.offset)  # their positions in the journal are invalid now
        self._send_gap("journal")

    def _on_changes_lost(self, loss: Gap) -> None:
        self._presence_changes.forget(self._journal.offset)
        self._send_gap("presence stream")

    def _send_gap(self, stream: str) -> None:
        self.gaps += 1
        _logger.warning(
            "Entries of the hub's %s were dropped before this worker read them. Its subscribers receive a gap event.",
            stream,
        )
        self._write(gap("lost"), None)

    def send_position(self) -> None:
        """Write the id of the current position to all subscribers."""
        self._write(self.position_event(), None)

    def position_event(self) -> Event:
        """Return an event with this worker's position, so subscribers can resume before their first event."""
        journal = self._journal
        return Event(
            "", None, None, self._presence_changes.resume_id(journal.current_id(), journal.offset), journal.offset
        )

    def _write(self, event: Event, channel: str | None) -> None:
        """Write an event to the subscribers of a channel, or to all subscribers if it's None."""
        limit = self._max_buffered
        written = 0
        slow: list[Outlet] = []
        for encode, outlets in self._audience.everyone() if channel is None else self._audience.plan(channel):
            chunk = encode(event)
            if not chunk:
                continue
            for outlet in outlets:
                outlet.write(chunk)
                if outlet.buffered > limit:
                    slow.append(outlet)
            self.delivered += len(outlets)
            written += len(chunk) * len(outlets)
        for outlet in slow:
            self._end(outlet, SLOW)
        self.backlog.add(written)

    def _end(self, outlet: Outlet, reason: str) -> None:
        subscriptions = self._audience.on(outlet)
        if subscriptions:
            self.cut[reason] = self.cut.get(reason, 0) + 1
            subscriptions[0].write(cut(reason))
            subscriptions[0].close()
