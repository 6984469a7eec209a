"""What a subscriber missed, written to it before it gets what is new.

A subscriber that reconnects names an id. Where everything behind it is still there, that's what it gets, once
and in order. Where it cannot, the subscriber gets a `gap` event and then whatever is left. A client that returns
without an id gets what its mailbox took in since it left.

While a subscriber waits for its connection it holds offsets only, so thousands that read nothing take little memory.
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
"""Bytes written between two looks at whether the outlet has room."""
_MEMORY = -1
"""The source of events in this worker's memory."""

Place = tuple[int, int]
"""An offset, and the number of the channel in whose history it is, or `_MEMORY`."""


class CatchUp:
    """The catching up of one subscriber."""

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
        """The other subscriptions of the same outlet."""
        self._at = subscription.since = journal.offset
        """Everything up to here is written, or not wanted."""
        self._written = 0
        """The offset of the event that was written last."""
        self._visiting = any(channel.startswith(PRESENCE) for channel in subscription.channels)
        subscription.heard = arrivals.last.number
        self._heard: tuple[int, int | None] = 0, subscription.heard
        """Place and number behind which arrivals and departures are new to the subscriber."""
        self._epoch = journal.epoch
        self._dropped: dict[str, int] = {}
        """The newest event of each channel that its history has no room for."""
        self._told = False
        """One gap event is enough."""
        self._page: int | None = None
        """Where the page of the journal begins that was read last."""
        self._cursors: list[HistoryCursor] = []
        """The places in the histories of the channels."""
        self._unread = 0
        """Bytes written since the outlet was asked whether it has room."""
        self._visits: deque[PresenceChange] = deque()
        """Arrivals and departures to be written before the next event."""
        self._wanted: dict[str, bool] = {}
        """Channels, and whether they are wanted: each pattern is matched once for each channel."""
        self.wrote = False
        """Some event was written."""

    @property
    def complete(self) -> bool:
        """The subscriber was not told of a gap."""
        return not self._told

    async def resume(self, id: str) -> None:
        """Go on behind the event with this id."""
        journal = self._journal
        offset, number = parse_position(id, journal.epoch) or (None, None)
        if offset is None:
            offset = await self._reader.find(id, self._wants)
        if offset is None:
            offset = max((index.ids[id] for index in await self._indexes() if id in index.ids), default=None)
        if offset is not None:
            await self._reach(offset)
        if offset is None or offset > journal.offset:
            # From before a restart, never published, or out of the journal.
            await self._start_over("unknown", after=0)
        else:
            self._at = self._written = self._subscription.since = offset
            self._heard = offset, number
            if number is not None:
                self._subscription.heard = number
        await self._follow()

    async def mailbox(self, client_id: str, seen: int, owed: tuple[int, float]) -> None:
        """Write what came for a client behind `seen`; `debt` are place and time of the oldest message of it."""
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
        """Write the last `count` events of what the subscription wants; arrivals and departures are not counted."""
        end = self._journal.offset
        plan = self._merge(await self._indexes(count), 0, end)
        newest = deque(plan, maxlen=count)
        await self._write(iter(newest))
        await self._follow()

    def finish(self) -> None:
        """Write who came and left during the replay. The next event goes to the subscriber directly, so don't wait."""
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
        """Write those that were delivered before an event, in its place: each id stands for all that was written."""
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
        """Another worker may have been ahead of this one; what it delivered must not come again as news."""
        if offset > self._journal.offset:
            await self._catch_up()

    async def _follow(self) -> None:
        """Write what comes behind `_at` until there is no more; nothing else runs between that and the return."""
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
        """Go on where this worker went on after it lost events, as those do who are connected."""
        journal = self._journal
        self._tell_gap("epoch" if journal.epoch != self._epoch else "lost")
        self._epoch, self._at, self._page = journal.epoch, journal.began, None
        self._subscription.since = journal.began

    async def _read_on(self) -> bool:
        """Write what the store has behind `_at`; False when some of it is gone, or it began a new epoch."""
        journal, after = self._journal, self._at
        if not after:  # the store began a new epoch, and had nothing when the place was told
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
            await self._catch_up()  # the store may have begun a new epoch that this worker doesn't know yet
            return False
        await asyncio.sleep(0)
        return self._at > after

    async def _bridge(self) -> None:
        """The journal begins behind `_at`: go by the histories, if they all go back so far."""
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
        """Say that events are gone, then write those behind `after` that are not."""
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
        """Return what is kept of each channel; nothing for patterns."""
        indexes: list[HistoryIndex] = []
        for channel in self._subscription.channels:
            most, _ = self._journal.bounds(channel)
            if is_pattern(channel) or not most:
                indexes.append(HistoryIndex(array("q"), array("d"), {}))
            else:
                # One more than is given out: where it is there, so many were dropped.
                indexes.append(await self._reader.index(channel, newest and min(newest, most) + 1))
        return indexes

    def _start(self, channel: str, index: HistoryIndex) -> int:
        """Return the number of the oldest entry that is neither too old nor too many."""
        most, _ = self._journal.bounds(channel)
        start = max(0, len(index.offsets) - most)
        while start < len(index.offsets) and self._journal.past(channel, index.times[start]):
            start += 1
        return start

    def _first(self, number: int, index: HistoryIndex) -> int | None:
        """Return the oldest offset in the history of a channel."""
        start = self._start(self._subscription.channels[number], index)
        return index.offsets[start] if start < len(index.offsets) else None

    def _merge(self, indexes: Sequence[HistoryIndex], after: int, end: int) -> Iterator[Place]:
        """Return the places of the events between two offsets, in order, and stand behind them.

        A worker's own memory is asked too: it may have delivered an event that its publisher has not yet put into
        the history.
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
        """Write the events at these places one by one, as the outlet has room."""
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
        """The same for an event of the store; of others only the channel is decoded."""
        offset = entry.position.offset
        if self._lacks_at(offset, channel_of(entry.data)) and not self._journal.ids.repeats(offset):
            self._offer(unpack(entry.data, self._epoch, offset))

    def _put(self, event: Event) -> None:
        """Write an event, and before it those who came and left."""
        if self._visits:
            self._send_changes(self._visits, event.offset)
        self._written, self.wrote = event.offset, True
        data = self._subscription.encode(event)
        self._subscription.outlet.write(data)
        self._unread += len(data)

    async def _make_room(self) -> None:
        """Wait until the outlet has room, after every so many bytes."""
        if self._unread >= _CHUNK:
            self._unread = 0
            await self._backlog.drain(self._subscription.outlet)

    def _wants(self, channel: str) -> bool:
        wanted = self._wanted.get(channel)
        if wanted is None:
            wanted = self._wanted[channel] = self._subscription.wants(channel)
        return wanted

    def _lacks(self, event: Event) -> bool:
        """Whether it wants an event that no other subscription writes to its outlet."""
        return self._lacks_at(event.offset, event.channel)

    def _lacks_at(self, offset: int, channel: str) -> bool:
        arrival = channel.startswith(PRESENCE)
        return self._wants(channel) and not any(
            (each.heard if arrival else each.since) < offset and each.wants(channel) for each in self._beside
        )


def _chain(first: Place | None, others: Iterator[Place]) -> Iterator[Place]:
    return others if first is None else chain((first,), others)
