"""Replay of missed events to a subscriber before new ones.

A subscriber that reconnects sends an event id. If all later events are available, it gets them once and in order.
Otherwise it gets a `gap` event and the remaining events. A client that reconnects without an id gets the new messages
of its mailbox. A subscriber that waits for its connection keeps only offsets, so thousands of slow ones take little
memory.
"""

import asyncio
import heapq
import sys
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat

from msgspec.structs import replace

from millstream._http.message import peer_network
from millstream._limits import Limiter, Rate
from millstream._stores.base import Entry, Gap
from millstream.hub._channels import CLIENT, PRESENCE, is_pattern
from millstream.hub._delivery import Delivery
from millstream.hub._event import Event, gap, parse_position, position_id, unpack, unpack_channel
from millstream.hub._presence import PresenceChange
from millstream.hub._reader import HistoryCursor, HistoryIndex
from millstream.hub._subscriber import Subscription

_CHUNK = 64 * 1024
"""Bytes to write between checks for space in the outlet."""
REPLAYS = Rate(200_000, 10)
"""Journal entries that one caller's replays may go back at once, and in ten seconds. Later replays wait for their turn,
because a short request makes the hub read and write thousands of events.
"""
_CACHED = -1
"""The source of cached events."""

EventLocation = tuple[int, int]
"""An offset, and the number of the channel whose history contains it, or `_CACHED`."""


class CatchUp:
    """The replay for one subscriber."""

    __slots__ = (
        "_backlog",
        "_catch_up",
        "_changes_after",
        "_cursors",
        "_epoch",
        "_gap_sent",
        "_journal",
        "_last_dropped",
        "_last_written",
        "_others",
        "_page",
        "_pending_changes",
        "_position",
        "_presence_changes",
        "_reader",
        "_replays",
        "_subscription",
        "_unread",
        "_wanted_channels",
        "_wants_presence",
        "wrote",
    )

    def __init__(
        self,
        delivery: Delivery,
        subscription: Subscription,
        *,
        replays: Limiter,
        others: Sequence[Subscription],
    ) -> None:
        self._journal = journal = delivery.journal
        self._reader = delivery.reader
        self._backlog = delivery.backlog
        self._presence_changes = delivery.presence_changes
        self._catch_up = delivery.catch_up
        self._replays = replays
        self._subscription = subscription
        self._others = others
        """Other subscriptions of the same outlet."""
        self._position = subscription.since = journal.offset
        """The offset up to which all wanted events are written."""
        self._last_written = 0
        """The offset of the last written event."""
        self._wants_presence = any(channel.startswith(PRESENCE) for channel in subscription.channels)
        subscription.last_change = self._presence_changes.last.number
        self._changes_after: tuple[int, int | None] = 0, subscription.last_change
        """The journal offset and number of the last presence change that the subscriber received."""
        self._epoch = journal.epoch
        self._last_dropped: dict[str, int] = {}
        """Offset of the newest event that each channel's history has dropped."""
        self._gap_sent = False
        """Whether a gap event was sent. It's sent only once."""
        self._page: int | None = None
        """The start of the last journal page that was read."""
        self._cursors: list[HistoryCursor] = []
        """Positions in the histories of the channels."""
        self._unread = 0
        """Bytes written since the last check for space in the outlet."""
        self._pending_changes: deque[PresenceChange] = deque()
        """Presence changes to write before the next event."""
        self._wanted_channels: dict[str, bool] = {}
        """Whether each channel is wanted, so patterns are matched once per channel."""
        self.wrote = False
        """Whether any event was written."""

    @property
    def complete(self) -> bool:
        """Return whether the subscriber got no gap event."""
        return not self._gap_sent

    async def resume(self, id: str) -> None:
        """Continue after the event with this id."""
        journal = self._journal
        offset, number = parse_position(id, journal.epoch) or (None, None)
        if offset is None:
            offset = await self._reader.find(id, self._wants, self._subscription.channels)
        if offset is None:
            offset = max((index.ids[id] for index in await self._indexes() if id in index.ids), default=None)
        if offset is not None:
            await self._read_until(offset)
        await self._wait_for_turn(journal.offset - (offset or 0))
        if offset is None or offset > journal.offset:
            # The id is from before a restart, was never published, or is no longer stored.
            await self._start_over("unknown", after=0)
        else:
            self._position = self._last_written = self._subscription.since = offset
            self._changes_after = offset, number
            if number is not None:
                self._subscription.last_change = number
        await self._write_new()

    async def mailbox(self, client_id: str, seen: int, undelivered: tuple[int, float]) -> None:
        """Write a client's messages after the offset `seen`, given its oldest undelivered message (offset and time)."""
        oldest, at = undelivered
        await self._read_until(max(seen, oldest))
        end = self._journal.offset
        channel = CLIENT + client_id
        plan = self._merge(await self._indexes(), seen, end)
        first = next(plan, None)
        if oldest > seen and (first is None or first[0] > oldest):
            self._send_gap("expired" if self._journal.is_expired_time(channel, at) else "trimmed")
        elif self._last_dropped[channel] > seen:
            self._send_gap("trimmed")
        await self._write(_chain(first, plan))
        await self._write_new()

    async def newest(self, count: int) -> None:
        """Write the last `count` events that the subscription wants. Presence changes aren't counted."""
        await self._wait_for_turn(count)
        end = self._journal.offset
        plan = self._merge(await self._indexes(count), 0, end)
        newest = deque(plan, maxlen=count)
        await self._write(iter(newest))
        await self._write_new()

    async def _wait_for_turn(self, entries: int) -> None:
        """Wait while the caller's other replays use up its allowance, or until the outlet is closed."""
        subscription, cost = self._subscription, max(0, min(entries, self._journal.kept))
        principal = subscription.principal
        owner = peer_network(subscription.address) if principal is None else principal.id
        if not owner or (wait := self._replays.take(owner, cost)) <= 0:
            return
        self._replays.put_back(owner, -cost)  # the next one waits longer
        closed = asyncio.Event()
        subscription.outlet.on_close(closed.set)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await closed.wait()
                self._replays.put_back(owner, cost)

    def finish(self) -> None:
        """Write the presence changes that arrived during the replay. Must not await, because delivery starts next."""
        if not self._subscription.outlet.closed:
            self._send_changes(self._missed_changes(), sys.maxsize)

    def _missed_changes(self) -> deque[PresenceChange]:
        if not self._wants_presence:
            return deque()
        changes, complete = self._presence_changes.since(*self._changes_after)
        if not complete:
            self._send_gap("trimmed")
        return changes

    def _send_changes(self, changes: deque[PresenceChange], before: int) -> None:
        """Write the changes delivered before an event, in order, because an id covers everything written before it."""
        subscription, journal = self._subscription, self._journal
        while changes and changes[0].journal_offset < before:
            change = changes.popleft()
            if self._changes_after[1] is None:
                subscription.last_change = change.number - 1
            self._changes_after = 0, change.number
            if self._is_missing(change.event) and not journal.is_expired(change.event):
                place = position_id(journal.epoch, max(change.journal_offset, self._last_written))
                subscription.write(replace(change.event, id=f"{place}-{change.number}"))

    async def _read_until(self, offset: int) -> None:
        """Read up to an offset that another worker may have reached already."""
        if offset > self._journal.offset:
            await self._catch_up()

    async def _write_new(self) -> None:
        """Write all events after `_position`. Nothing else runs between the last check and the return."""
        journal, outlet = self._journal, self._subscription.outlet
        while not outlet.closed:
            if journal.epoch != self._epoch or journal.offset < self._position:
                self._skip_lost()
            elif self._position == journal.offset:
                return
            elif (
                recent := journal.recent(self._position, _CHUNK, journal.floor(self._subscription.channels))
            ) is not None:
                events, self._position = recent
                self._pending_changes = self._missed_changes()
                for event in events:
                    self._write_if_missing(event)
            elif not await self._write_page() and journal.epoch == self._epoch:
                await self._write_from_histories()
            await self._wait_for_space()

    def _skip_lost(self) -> None:
        """Skip to the position where this worker restarted after losing events, like connected subscribers."""
        journal = self._journal
        self._send_gap("epoch" if journal.epoch != self._epoch else "lost")
        self._epoch, self._position, self._page = journal.epoch, journal.start_offset, None
        self._subscription.since = journal.start_offset

    async def _write_page(self) -> bool:
        """Write a page of events after `_position`. Return False if some were trimmed or the store has a new epoch."""
        journal, after = self._journal, self._position
        if not after:  # a new epoch, whose stream was empty when the position was sent
            return False
        try:
            async with self._reader.slots:
                page, self._page = await self._reader.journal_page(self._page, after)
                if journal.epoch != self._epoch:
                    return False
                self._pending_changes = self._missed_changes()
                for entry in page:
                    if entry.position.offset > journal.offset or self._unread >= _CHUNK:
                        break
                    self._position = entry.position.offset
                    self._write_entry_if_missing(entry)
        except Gap:
            await self._catch_up()  # the store may be at a new epoch
            return False
        await asyncio.sleep(0)
        return self._position > after

    async def _write_from_histories(self) -> None:
        """Write from the channels' histories, if all of them go back further than the journal. Otherwise start over."""
        after, end = self._position, self._journal.offset
        indexes = await self._indexes()
        if self._journal.epoch != self._epoch:
            return
        firsts = [self._first(number, index) for number, index in enumerate(indexes)]
        if self._subscription.has_wildcard or any(first is None or first > after for first in firsts):
            await self._start_over("trimmed", after=after)
        else:
            await self._write(self._merge(indexes, after, end))

    async def _start_over(self, reason: str, *, after: int) -> None:
        """Send a gap event, then write the remaining events after an offset."""
        self._epoch, end = self._journal.epoch, self._journal.offset
        self._send_gap(reason)
        plan = self._merge(await self._indexes(), after, end)
        first = next(plan, None)
        self._subscription.since = first[0] - 1 if first is not None else end
        await self._write(_chain(first, plan))

    def _send_gap(self, reason: str) -> None:
        if not self._gap_sent:
            self._gap_sent = True
            self._subscription.write(gap(reason))

    async def _indexes(self, newest: int = 0) -> list[HistoryIndex]:
        """Return the index of each channel's history. The index of a pattern is empty."""
        indexes: list[HistoryIndex] = []
        if self._subscription.has_wildcard:
            await self._journal.fill(self._subscription.channels)
        for channel in self._subscription.channels:
            limit, _ = self._journal.bounds(channel)
            if is_pattern(channel) or not limit:
                indexes.append(HistoryIndex(array("q"), array("d"), {}))
            else:
                # An entry beyond the limit shows that entries were dropped.
                indexes.append(await self._reader.index(channel, newest and min(newest, limit) + 1))
        return indexes

    def _first_valid(self, channel: str, index: HistoryIndex) -> int:
        """Return the position in the index of the oldest entry within the limits of age and count."""
        limit, _ = self._journal.bounds(channel)
        start = max(0, len(index.offsets) - limit)
        while start < len(index.offsets) and self._journal.is_expired_time(channel, index.times[start]):
            start += 1
        return start

    def _first(self, number: int, index: HistoryIndex) -> int | None:
        """Return the oldest offset in a channel's history."""
        start = self._first_valid(self._subscription.channels[number], index)
        return index.offsets[start] if start < len(index.offsets) else None

    def _merge(self, indexes: Sequence[HistoryIndex], after: int, end: int) -> Iterator[EventLocation]:
        """Return the locations of events between two offsets, in order, and advance past them.

        Cached events are included, because a worker can deliver an event before its publisher has appended it to the
        history.
        """
        journal, channels = self._journal, self._subscription.channels
        self._position = end
        sources: list[Iterator[EventLocation]] = []
        for number, (channel, index) in enumerate(zip(channels, indexes, strict=True)):
            start = self._first_valid(channel, index)
            if is_pattern(channel):
                continue
            dropped = index.offsets[start - 1] if start else 0
            self._last_dropped[channel] = dropped if journal.bounds(channel)[0] else journal.offset
            offsets = index.offsets[max(start, bisect_left(index.offsets, after + 1)) :]
            sources.append(zip(offsets, repeat(number)))
        cached = array("q")
        for event in journal.recent_events(after):
            dropped = self._last_dropped.get(event.channel, 0)
            if event.offset > dropped and self._is_missing(event) and not journal.is_expired(event):
                cached.append(event.offset)
        sources.append(zip(cached, repeat(_CACHED)))
        self._cursors = [
            HistoryCursor(self._reader, channel, index.start(after + 1))
            for channel, index in zip(channels, indexes, strict=True)
        ]
        return self._deduplicate(heapq.merge(*sources), end)

    def _deduplicate(self, merged: Iterator[EventLocation], end: int) -> Iterator[EventLocation]:
        """Yield each missing offset up to the end once."""
        last = 0
        for offset, source in merged:
            if offset > end:
                return
            if offset != last and (
                source == _CACHED or self._is_missing_at(offset, self._subscription.channels[source])
            ):
                last = offset
                yield offset, source

    async def _write(self, plan: Iterator[EventLocation]) -> None:
        """Write the events at these locations, waiting for space in the outlet."""
        outlet, journal, cursors, epoch = self._subscription.outlet, self._journal, self._cursors, self._epoch
        place = next(plan, None)
        while place is not None and not outlet.closed:
            async with self._reader.slots:
                self._pending_changes = self._missed_changes()
                while place is not None and self._unread < _CHUNK:
                    offset, source = place
                    event = journal.find_recent(offset)
                    if event is None and source != _CACHED:
                        entry = await cursors[source].entry(offset)
                        event = None if entry is None else unpack(entry.data, epoch, offset)
                    if journal.epoch != epoch:
                        return
                    if event is None:
                        self._send_gap("trimmed")
                    else:
                        self._write_event(event)
                    place = next(plan, None)
                for cursor in cursors:
                    cursor.release()
            await self._wait_for_space()

    def _write_if_missing(self, event: Event) -> None:
        """Write an event if the subscriber is missing it."""
        if self._is_missing(event):
            if self._journal.is_expired(event):
                self._send_gap("expired")
            else:
                self._write_event(event)

    def _write_entry_if_missing(self, entry: Entry) -> None:
        """Write a stored event if the subscriber is missing it. Unwanted events are decoded only up to the channel."""
        offset = entry.position.offset
        if self._is_missing_at(offset, unpack_channel(entry.data)):
            self._write_if_missing(unpack(entry.data, self._epoch, offset))

    def _write_event(self, event: Event) -> None:
        """Write an event after the presence changes before it."""
        if self._pending_changes:
            self._send_changes(self._pending_changes, event.offset)
        self._last_written, self.wrote = event.offset, True
        data = self._subscription.encode(event)
        self._subscription.outlet.write(data)
        self._unread += len(data)

    async def _wait_for_space(self) -> None:
        """Wait for space in the outlet, after every `_CHUNK` bytes."""
        if self._unread >= _CHUNK:
            self._unread = 0
            await self._backlog.drain(self._subscription.outlet)

    def _wants(self, channel: str) -> bool:
        wanted = self._wanted_channels.get(channel)
        if wanted is None:
            wanted = self._wanted_channels[channel] = self._subscription.matches(channel)
        return wanted

    def _is_missing(self, event: Event) -> bool:
        """Return whether the subscriber wants an event that no other subscription writes to its outlet."""
        return self._is_missing_at(event.offset, event.channel)

    def _is_missing_at(self, offset: int, channel: str) -> bool:
        is_presence = channel.startswith(PRESENCE)
        return self._wants(channel) and not any(
            (each.last_change if is_presence else each.since) < offset and each.matches(channel)
            for each in self._others
        )


def _chain(first: EventLocation | None, others: Iterator[EventLocation]) -> Iterator[EventLocation]:
    return others if first is None else chain((first,), others)
