"""Replay of missed events to a subscriber before new ones.

A subscriber that reconnects names an event id. If all later events are available, it gets them once and in order.
Otherwise it gets a `gap` event and the remaining events. A client that returns without an id gets the new messages of
its mailbox.

A subscriber that waits for its connection holds only offsets, so thousands of slow ones take little memory.
"""

import asyncio
import heapq
import sys
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain, repeat

from msgspec.structs import replace

from millstream._stores.base import Entry, Gap
from millstream.hub._backlog import UnreadBacklog
from millstream.hub._channels import CLIENT, PRESENCE, is_pattern
from millstream.hub._event import Event, channel_of, gap, parse_position, position_id, unpack
from millstream.hub._journal import Journal
from millstream.hub._presence_changes import PresenceChange, PresenceChanges
from millstream.hub._reader import HistoryCursor, HistoryIndex, JournalReader
from millstream.hub._subscriber import Subscription

_CHUNK = 64 * 1024
"""Bytes to write between checks for space in the outlet."""
_MEMORY = -1
"""The source of cached events."""

Place = tuple[int, int]
"""An offset, and the number of the channel whose history has it, or `_MEMORY`."""


class CatchUp:
    """The replay for one subscriber."""

    __slots__ = (
        "_arrivals", "_at", "_backlog", "_beside", "_catch_up", "_cursors", "_dropped", "_epoch", "_heard", "_journal",
        "_page", "_reader", "_subscription", "_told", "_unread", "_visiting", "_visits", "_wanted", "_written", "wrote",
    )  # fmt: skip

    def __init__(
        self,
        journal: Journal,
        reader: JournalReader,
        arrivals: PresenceChanges,
        subscription: Subscription,
        *,
        backlog: UnreadBacklog,
        catch_up: Callable[[], Awaitable[None]],
        beside: Sequence[Subscription] = (),
    ) -> None:
        self._journal = journal
        self._reader = reader
        self._backlog = backlog
        self._arrivals = arrivals
        self._catch_up = catch_up
        self._subscription = subscription
        self._beside = beside
        """Other subscriptions of the same outlet."""
        self._at = subscription.since = journal.offset
        """All wanted events up to here are written."""
        self._written = 0
        """The offset of the last written event."""
        self._visiting = any(channel.startswith(PRESENCE) for channel in subscription.channels)
        subscription.heard = arrivals.last.number
        self._heard: tuple[int, int | None] = 0, subscription.heard
        """Offset and number after which presence changes are new to the subscriber."""
        self._epoch = journal.epoch
        self._dropped: dict[str, int] = {}
        """Channel -> its newest event that the history has dropped."""
        self._told = False
        """Whether a gap event was sent. One is enough."""
        self._page: int | None = None
        """The start of the last journal page that was read."""
        self._cursors: list[HistoryCursor] = []
        """Positions in the histories of the channels."""
        self._unread = 0
        """Bytes written since the last check for space in the outlet."""
        self._visits: deque[PresenceChange] = deque()
        """Presence changes to write before the next event."""
        self._wanted: dict[str, bool] = {}
        """Channel -> whether it's wanted, so each pattern is matched once per channel."""
        self.wrote = False
        """Whether any event was written."""

    @property
    def complete(self) -> bool:
        """Return whether the subscriber got no gap event."""
        return not self._told

    async def resume(self, id: str) -> None:
        """Continue after the event with this id."""
        journal = self._journal
        offset, number = parse_position(id, journal.epoch) or (None, None)
        if offset is None:
            offset = await self._reader.find(id, self._wants)
        if offset is None:
            offset = max((index.ids[id] for index in await self._indexes() if id in index.ids), default=None)
        if offset is not None:
            await self._reach(offset)
        if offset is None or offset > journal.offset:
            # The id is from before a restart, was never published, or has left the journal.
            await self._start_over("unknown", after=0)
        else:
            self._at = self._written = self._subscription.since = offset
            self._heard = offset, number
            if number is not None:
                self._subscription.heard = number
        await self._follow()

    async def mailbox(self, client_id: str, seen: int, owed: tuple[int, float]) -> None:
        """Write a client's messages after `seen`. `owed` is the position and time of its oldest undelivered message."""
        oldest, at = owed
        await self._reach(max(seen, oldest))
        end = self._journal.offset
        channel = CLIENT + client_id
        plan = self._merge(await self._indexes(), seen, end)
        first = next(plan, None)
        if oldest > seen and (first is None or first[0] > oldest):
            self._tell_gap("expired" if self._journal.past(channel, at) else "trimmed")
        elif self._dropped[channel] > seen:
            self._tell_gap("trimmed")
        await self._write(_chain(first, plan))
        await self._follow()

    async def newest(self, count: int) -> None:
        """Write the last `count` events that the subscription wants. Presence changes aren't counted."""
        end = self._journal.offset
        plan = self._merge(await self._indexes(count), 0, end)
        newest = deque(plan, maxlen=count)
        await self._write(iter(newest))
        await self._follow()

    def finish(self) -> None:
        """Write presence changes during the replay. Must not await, because the next event is delivered directly."""
        if not self._subscription.outlet.closed:
            self._send_changes(self._missed_changes(), sys.maxsize)

    def _missed_changes(self) -> deque[PresenceChange]:
        if not self._visiting:
            return deque()
        visits, complete = self._arrivals.since(*self._heard)
        if not complete:
            self._tell_gap("trimmed")
        return visits

    def _send_changes(self, visits: deque[PresenceChange], before: int) -> None:
        """Write the changes delivered before an event, each in order, because an id stands for everything written
        before it.
        """
        subscription, journal = self._subscription, self._journal
        while visits and visits[0].behind < before:
            visit = visits.popleft()
            if self._heard[1] is None:
                subscription.heard = visit.number - 1
            self._heard = 0, visit.number
            if self._lacks(visit.event) and not journal.too_old(visit.event):
                place = position_id(journal.epoch, max(visit.behind, self._written))
                subscription.write(replace(visit.event, id=f"{place}-{visit.number}"))

    async def _reach(self, offset: int) -> None:
        """Wait until this worker has read up to an offset. Another worker may have delivered more than this one."""
        if offset > self._journal.offset:
            await self._catch_up()

    async def _follow(self) -> None:
        """Write events after `_at` until there are none. Nothing else runs between the last check and the return."""
        journal, outlet = self._journal, self._subscription.outlet
        while not outlet.closed:
            if journal.epoch != self._epoch or journal.offset < self._at:
                self._skip_lost()
            elif self._at == journal.offset:
                return
            elif (recent := journal.recent(self._at, _CHUNK)) is not None:
                events, self._at = recent
                self._visits = self._missed_changes()
                for event in events:
                    self._offer(event)
            elif not await self._read_on() and journal.epoch == self._epoch:
                await self._bridge()
            await self._make_room()

    def _skip_lost(self) -> None:
        """Continue at the position where this worker continued after losing events, like connected subscribers."""
        journal = self._journal
        self._tell_gap("epoch" if journal.epoch != self._epoch else "lost")
        self._epoch, self._at, self._page = journal.epoch, journal.began, None
        self._subscription.since = journal.began

    async def _read_on(self) -> bool:
        """Write stored events after `_at`. Return False if some are gone or the store began a new epoch."""
        journal, after = self._journal, self._at
        if not after:  # a new epoch, whose stream was empty when the position was sent
            return False
        try:
            async with self._reader.turns:
                page, self._page = await self._reader.journal_page(self._page, after)
                if journal.epoch != self._epoch:
                    return False
                self._visits = self._missed_changes()
                for entry in page:
                    if entry.position.offset > journal.offset or self._unread >= _CHUNK:
                        break
                    self._at = entry.position.offset
                    self._offer_entry(entry)
        except Gap:
            await self._catch_up()  # the store may be at a new epoch
            return False
        await asyncio.sleep(0)
        return self._at > after

    async def _bridge(self) -> None:
        """Use the channels' histories if the journal begins after `_at` and all histories go back that far."""
        after, end = self._at, self._journal.offset
        indexes = await self._indexes()
        if self._journal.epoch != self._epoch:
            return
        firsts = [self._first(number, index) for number, index in enumerate(indexes)]
        if self._subscription.wild or any(first is None or first > after for first in firsts):
            await self._start_over("trimmed", after=after)
        else:
            await self._write(self._merge(indexes, after, end))

    async def _start_over(self, reason: str, *, after: int) -> None:
        """Send a gap event, then write the remaining events after `after`."""
        self._epoch, end = self._journal.epoch, self._journal.offset
        self._tell_gap(reason)
        plan = self._merge(await self._indexes(), after, end)
        first = next(plan, None)
        self._subscription.since = first[0] - 1 if first is not None else end
        await self._write(_chain(first, plan))

    def _tell_gap(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._subscription.write(gap(reason))

    async def _indexes(self, newest: int = 0) -> list[HistoryIndex]:
        """Return the contents of each channel's history; none for patterns."""
        indexes: list[HistoryIndex] = []
        for channel in self._subscription.channels:
            most, _ = self._journal.bounds(channel)
            if is_pattern(channel) or not most:
                indexes.append(HistoryIndex(array("q"), array("d"), {}))
            else:
                # One more than the limit, which shows whether entries were dropped.
                indexes.append(await self._reader.index(channel, newest and min(newest, most) + 1))
        return indexes

    def _start(self, channel: str, index: HistoryIndex) -> int:
        """Return the number of the oldest entry within the limits of age and count."""
        most, _ = self._journal.bounds(channel)
        start = max(0, len(index.offsets) - most)
        while start < len(index.offsets) and self._journal.past(channel, index.times[start]):
            start += 1
        return start

    def _first(self, number: int, index: HistoryIndex) -> int | None:
        """Return the oldest offset in a channel's history."""
        start = self._start(self._subscription.channels[number], index)
        return index.offsets[start] if start < len(index.offsets) else None

    def _merge(self, indexes: Sequence[HistoryIndex], after: int, end: int) -> Iterator[Place]:
        """Return the positions of events between two offsets, in order, and advance past them.

        Cached events are included, because a worker can deliver an event before its publisher has appended it to the
        history.
        """
        journal, channels = self._journal, self._subscription.channels
        self._at = end
        sources: list[Iterator[Place]] = []
        for number, (channel, index) in enumerate(zip(channels, indexes, strict=True)):
            start = self._start(channel, index)
            if is_pattern(channel):
                continue
            dropped = index.offsets[start - 1] if start else 0
            self._dropped[channel] = dropped if journal.bounds(channel)[0] else journal.offset
            offsets = index.offsets[max(start, bisect_left(index.offsets, after + 1)) :]
            sources.append(zip(offsets, repeat(number)))
        remembered = array("q")
        for event in journal.recent_events(after):
            dropped = self._dropped.get(event.channel, 0)
            if event.offset > dropped and self._lacks(event) and not journal.too_old(event):
                remembered.append(event.offset)
        sources.append(zip(remembered, repeat(_MEMORY)))
        self._cursors = [
            HistoryCursor(self._reader, channel, index.start(after + 1))
            for channel, index in zip(channels, indexes, strict=True)
        ]
        return self._places(heapq.merge(*sources), end)

    def _places(self, merged: Iterator[Place], end: int) -> Iterator[Place]:
        """Yield each offset up to the end once, if the subscriber lacks it."""
        last = 0
        for offset, source in merged:
            if offset > end:
                return
            if offset != last and (source == _MEMORY or self._lacks_at(offset, self._subscription.channels[source])):
                last = offset
                yield offset, source

    async def _write(self, plan: Iterator[Place]) -> None:
        """Write the events at these positions, waiting for space in the outlet."""
        outlet, journal, cursors, epoch = self._subscription.outlet, self._journal, self._cursors, self._epoch
        place = next(plan, None)
        while place is not None and not outlet.closed:
            async with self._reader.turns:
                self._visits = self._missed_changes()
                while place is not None and self._unread < _CHUNK:
                    offset, source = place
                    event = journal.recall(offset)
                    if event is None and source != _MEMORY:
                        entry = await cursors[source].entry(offset)
                        event = None if entry is None else unpack(entry.data, epoch, offset)
                    if journal.epoch != epoch:
                        return
                    if event is None:
                        self._tell_gap("trimmed")
                    elif not journal.ids.repeats(offset):
                        self._put(event)
                    place = next(plan, None)
                for cursor in cursors:
                    cursor.release()
            await self._make_room()

    def _offer(self, event: Event) -> None:
        """Write an event if the subscriber lacks it."""
        if self._lacks(event):
            if self._journal.too_old(event):
                self._tell_gap("expired")
            else:
                self._put(event)

    def _offer_entry(self, entry: Entry) -> None:
        """Write a stored event if the subscriber lacks it. Unwanted ones are decoded only up to the channel."""
        offset = entry.position.offset
        if self._lacks_at(offset, channel_of(entry.data)) and not self._journal.ids.repeats(offset):
            self._offer(unpack(entry.data, self._epoch, offset))

    def _put(self, event: Event) -> None:
        """Write an event after the presence changes before it."""
        if self._visits:
            self._send_changes(self._visits, event.offset)
        self._written, self.wrote = event.offset, True
        data = self._subscription.encode(event)
        self._subscription.outlet.write(data)
        self._unread += len(data)

    async def _make_room(self) -> None:
        """Wait for space in the outlet, after every `_CHUNK` bytes."""
        if self._unread >= _CHUNK:
            self._unread = 0
            await self._backlog.drain(self._subscription.outlet)

    def _wants(self, channel: str) -> bool:
        wanted = self._wanted.get(channel)
        if wanted is None:
            wanted = self._wanted[channel] = self._subscription.wants(channel)
        return wanted

    def _lacks(self, event: Event) -> bool:
        """Return whether the subscriber wants an event that no other subscription writes to its outlet."""
        return self._lacks_at(event.offset, event.channel)

    def _lacks_at(self, offset: int, channel: str) -> bool:
        arrival = channel.startswith(PRESENCE)
        return self._wants(channel) and not any(
            (each.heard if arrival else each.since) < offset and each.wants(channel) for each in self._beside
        )


def _chain(first: Place | None, others: Iterator[Place]) -> Iterator[Place]:
    return others if first is None else chain((first,), others)
