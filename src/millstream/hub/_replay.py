"""Replay of missed events to a subscriber before new ones.

A subscriber that reconnects sends an event id. If all later events are available, it gets them once and in order.
Otherwise it gets a `gap` event and the remaining events. A client that reconnects without an id gets the new messages
of its mailbox. A subscriber that's waiting for its connection keeps only offsets, so thousands of slow ones take little
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
from functools import cache
from itertools import islice, repeat

from msgspec import Struct
from msgspec.structs import replace

from millstream._http.message import peer_network
from millstream._limits import Limiter, Rate
from millstream._protocol.principal import knows_identities
from millstream._stores.base import Gap
from millstream.hub._channels import CLIENT, PRESENCE, is_pattern
from millstream.hub._delivery import Delivery
from millstream.hub._event import MEMBERS, Event, encode_data, gap, parse_position, position_id, unpack, unpack_header
from millstream.hub._journal import FIRST_CHANNEL, history_stream
from millstream.hub._presence import MemberList, PresenceChange
from millstream.hub._reader import HistoryCursor, HistoryIndex
from millstream.hub._subscriber import Subscription

_CHUNK = 64 * 1024
"""Bytes to write between checks for space in the outlet."""
REPLAYS = Rate(200_000, 10)
"""Maximum journal entries for one caller's replays, concurrently and in ten seconds. Further replays wait, because a
short request makes the hub read and write thousands of events.
"""
_CACHED = -1
"""The source of cached events."""
_JOURNAL = -2
"""The source of events that match a wildcard and aren't cached."""

EventLocation = tuple[int, int]
"""An offset, and the number of the channel whose history contains it, or `_CACHED`, or `_JOURNAL`."""


class _History(Struct):
    """The history of a channel."""

    channel: str
    index: HistoryIndex
    start: int
    """Index of the oldest entry within the limits of age and count."""

    @property
    def first(self) -> int:
        """The oldest offset within the limits."""
        return min(self.index.offsets[self.start :], default=sys.maxsize)


class CatchUp:
    """The replay for one subscriber."""

    gap_sent = False
    """Whether a gap event was sent. It's sent only once."""
    wrote = False
    """Whether any event was written."""
    _last_written = 0
    """The offset of the last written event."""
    _page: int | None = None
    """The start of the last journal page that was read."""
    _unread = 0
    """Bytes written since the last check for space in the outlet."""

    def __init__(self, delivery: Delivery, subscription: Subscription, replays: Limiter) -> None:
        self._delivery = delivery
        self._journal = journal = delivery.journal
        self._reader = delivery.reader
        self._replays = replays
        self._subscription = subscription
        self._others = [each for each in delivery.audience.on(subscription.outlet) if each.joined]
        """Other subscriptions of the same outlet."""
        self._wants = cache(subscription.matches)
        """Whether a channel is wanted. Patterns are matched once per channel."""
        self._position = subscription.since = journal.offset
        """The offset up to which all wanted events are written."""
        subscription.last_change = delivery.presence_changes.last.number
        self._changes_after: tuple[int, int | None] = 0, subscription.last_change
        """The journal offset and number of the last presence change that the subscriber received."""
        self._epoch = journal.epoch
        self._last_dropped: dict[str, int] = {}
        """Offset of the newest event that each channel's history has dropped."""
        self._patterns = [each for each in subscription.channels if is_pattern(each) and not each.startswith(PRESENCE)]
        self._index = HistoryIndex()
        """The journal's index, for the patterns."""
        self._cursors: list[HistoryCursor] = []
        """Positions in the histories of the channels."""
        self._pending_changes: deque[PresenceChange] = deque()
        """Presence changes to write before the next event."""

    async def resume(self, id: str) -> None:
        """Continue after the event with this id."""
        journal = self._journal
        offset, number = parse_position(id, journal.epoch) or (None, None)
        if offset is None:
            found = await self._reader.find(id, self._wants)
            found |= {each.index.ids[id] for each in await self._histories() if id in each.index.ids}
            offset = found.pop() or None if len(found) == 1 else None
        if offset is not None:
            await self._read_until(offset, number or 0)
        await self._wait_for_turn(journal.offset - (offset or 0))
        if offset is None or offset > journal.offset:
            # The id is from before a restart, was never published, is no longer stored, or belongs to several events.
            await self._start_over("unknown", after=0)
        else:
            self._position = self._last_written = self._subscription.since = offset
            self._changes_after = offset, number
            if number is not None:
                self._subscription.last_change = number
        await self._write_new()

    async def mailbox(self, client_id: str) -> None:
        """Write a client's messages after the last one that it received."""
        mailboxes = self._delivery.mailboxes
        seen = await mailboxes.read_offset(client_id)
        oldest, at = await mailboxes.oldest_undelivered(client_id)
        await self._read_until(max(seen, oldest))
        end = self._journal.offset
        channel = CLIENT + client_id
        plan = self._merge(await self._histories(), seen, end)
        first = next(plan, None)
        if oldest > seen and (first is None or first[0] > oldest):
            self._send_gap("expired" if self._journal.is_expired(channel, at) else "trimmed")
        elif self._last_dropped[channel] > seen:
            self._send_gap("trimmed")
        await self._write(first, plan)
        await self._write_new()

    async def newest(self, count: int) -> None:
        """Write the last `count` matching events. Presence changes aren't counted."""
        await self._wait_for_turn(count)
        end = self._journal.offset
        newest = deque(self._merge(await self._histories(count), 0, end), maxlen=count)
        if (
            self._patterns
            and self._journal.limits.history
            and self._lacks_events_before(newest[0][0] if len(newest) == count else 0)
        ):
            self._send_gap("trimmed")
        plan = iter(newest)
        await self._write(next(plan, None), plan)
        await self._write_new()

    def _lacks_events_before(self, offset: int) -> bool:
        """Return whether some of the patterns' events before an offset, or 0 for all, may no longer be stored."""
        journal, index = self._journal, self._index
        recent = next(journal.recent_events(journal.floor(self._patterns)), None)
        found = [] if recent is None else [(recent.offset, recent.timestamp, recent.channel)]
        found += islice(zip(index.offsets, index.times, index.channels, strict=True), 1)
        oldest, at, channel = min(found, default=(0, 0.0, FIRST_CHANNEL))
        return offset < oldest and channel != FIRST_CHANNEL and not journal.is_expired(channel, at)

    async def members(self, lists: Sequence[MemberList]) -> None:
        """Write the members of channels as of this worker's last presence change, and the events since."""
        subscription, number = self._subscription, self._delivery.presence_changes.last.number
        self._changes_after, subscription.last_change = (0, number), number
        id = f"{position_id(self._epoch, self._position)}-{number}"
        full = knows_identities(subscription.principal)
        for each in lists:
            subscription.write(Event("", encode_data(replace(each, event=id).visible(full)), MEMBERS, id))
        await self._delivery.drain(subscription.outlet)
        await self._write_new()

    async def _wait_for_turn(self, entries: int) -> None:
        """Wait while the caller's other replays use up its allowance, or until the outlet is closed."""
        subscription, cost = self._subscription, max(0, min(entries, self._journal.limits.journal))
        principal = subscription.principal
        owner = peer_network(subscription.address) if principal is None else principal.id
        if not owner or (wait := self._replays.take(owner, cost)) <= 0:
            return
        self._replays.put_back(owner, -cost)  # the caller's next replay waits longer
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
        if not any(channel.startswith(PRESENCE) for channel in self._subscription.channels):
            return deque()
        changes, complete = self._delivery.presence_changes.since(*self._changes_after)
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
            event = change.event
            if self._is_missing(event.offset, event.channel) and not journal.is_expired(event.channel, event.timestamp):
                place = position_id(journal.epoch, max(change.journal_offset, self._last_written))
                subscription.write(replace(event, id=f"{place}-{change.number}"))

    async def _read_until(self, offset: int, change: int = 0) -> None:
        """Read up to an offset and a presence change that another worker may already have reached."""
        if offset > self._journal.offset or change > self._delivery.presence_changes.last.number:
            await self._delivery.catch_up()

    async def _write_new(self) -> None:
        """Write all events after `_position`. Nothing else runs between the last check and the return."""
        journal, outlet = self._journal, self._subscription.outlet
        while not outlet.closed:
            if journal.epoch != self._epoch or journal.offset < self._position:
                # This worker has lost events. Skip to where it restarted, like connected subscribers.
                self._send_gap("epoch" if journal.epoch != self._epoch else "lost")
                self._epoch, self._position, self._page = journal.epoch, journal.start_offset, None
                self._subscription.since = journal.start_offset
            elif self._position == journal.offset:
                return
            elif (
                recent := journal.recent(self._position, _CHUNK, journal.floor(self._subscription.channels))
            ) is not None:
                events, self._position = recent
                self._pending_changes = self._missed_changes()
                for event in events:
                    if self._is_missing(event.offset, event.channel):
                        self._write_unexpired(event)
            elif not await self._write_page() and journal.epoch == self._epoch:
                await self._write_from_histories()
            await self._wait_for_space()

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
                    if (offset := entry.position.offset) > journal.offset or self._unread >= _CHUNK:
                        break
                    self._position = offset
                    if self._is_missing(offset, unpack_header(entry.data).channel):  # stop without decoding the rest
                        self._write_unexpired(unpack(entry))
        except Gap:
            await self._delivery.catch_up()  # the store may be at a new epoch
            return False
        await asyncio.sleep(0)
        return self._position > after

    async def _write_from_histories(self) -> None:
        """Write from the channels' histories if each of them reaches back to the position. Otherwise, and with a
        wildcard, start over.
        """
        after, end = self._position, self._journal.offset
        histories = await self._histories()
        if self._journal.epoch != self._epoch:
            return
        if self._subscription.has_wildcard or any(each.first > after for each in histories):
            await self._start_over("trimmed", after=after)
        else:
            plan = self._merge(histories, after, end)
            await self._write(next(plan, None), plan)

    async def _start_over(self, reason: str, *, after: int) -> None:
        """Send a gap event, then write the remaining events after an offset."""
        self._epoch, end = self._journal.epoch, self._journal.offset
        self._send_gap(reason)
        plan = self._merge(await self._histories(), after, end)
        first = next(plan, None)
        self._subscription.since = first[0] - 1 if first is not None else end
        await self._write(first, plan)

    def _send_gap(self, reason: str) -> None:
        if not self.gap_sent:
            self.gap_sent = True
            self._subscription.write(gap(reason))

    async def _histories(self, newest: int = 0) -> list[_History]:
        """Return the history of each channel. A pattern has an empty one, because the journal has its events."""
        journal, histories = self._journal, list[_History]()
        if self._patterns and journal.floor(self._patterns) > 0:
            self._index = await self._reader.journal_index(self._patterns)
        for channel in self._subscription.channels:
            limit, _ = journal.bounds(channel)
            index = HistoryIndex()
            if limit and not is_pattern(channel):
                # An entry beyond the limit shows that entries were dropped.
                index = await self._reader.index(channel, newest and min(newest, limit) + 1)
            count = len(index.offsets)
            start = max(0, count - limit)
            while start < count and journal.is_expired(channel, index.times[start]):
                start += 1
            histories.append(_History(channel, index, start))
        return histories

    def _merge(self, histories: Sequence[_History], after: int, end: int) -> Iterator[EventLocation]:
        """Return the locations of events between two offsets, in order, and advance past them.

        Cached events are included, because a worker can deliver an event before its publisher has appended it to the
        history.
        """
        journal = self._journal
        self._position = end
        sources: list[Iterator[EventLocation]] = []
        for number, each in enumerate(histories):
            offsets = each.index.offsets
            dropped = offsets[each.start - 1] if each.start else 0
            self._last_dropped[each.channel] = dropped if journal.bounds(each.channel)[0] else journal.offset
            sources.append(zip(offsets[max(each.start, bisect_left(offsets, after + 1)) :], repeat(number)))
        before = 0 if journal.limits.history else end

        def is_wanted(offset: int, channel: str, at: float) -> bool:
            return (
                offset > self._last_dropped.get(channel, before)
                and self._is_missing(offset, channel)
                and not journal.is_expired(channel, at)
            )

        recent, index = journal.recent_events(after), self._index
        cached = array("q", (each.offset for each in recent if is_wanted(each.offset, each.channel, each.timestamp)))
        sources.append(zip(cached, repeat(_CACHED)))
        stored = array("q")
        for offset, at, channel in zip(index.offsets, index.times, index.channels, strict=True):
            if (
                offset > after
                and self._wants(channel)
                and channel not in self._last_dropped
                and is_wanted(offset, channel, at)
            ):
                stored.append(offset)
        sources.append(zip(stored, repeat(_JOURNAL)))
        self._cursors = [
            HistoryCursor(self._reader, history_stream(each.channel), each.index.start(after + 1)) for each in histories
        ]
        return self._deduplicate(heapq.merge(*sources), end)

    def _deduplicate(self, merged: Iterator[EventLocation], end: int) -> Iterator[EventLocation]:
        """Yield each missing offset up to the end once."""
        last = 0
        for offset, source in merged:
            if offset > end:
                return
            if offset != last and (source < 0 or self._is_missing(offset, self._subscription.channels[source])):
                last = offset
                yield offset, source

    async def _write(self, place: EventLocation | None, plan: Iterator[EventLocation]) -> None:
        """Write the events at a location and at the following ones, waiting for space in the outlet."""
        outlet, journal, cursors, epoch = self._subscription.outlet, self._journal, self._cursors, self._epoch
        while place is not None and not outlet.closed:
            async with self._reader.slots:
                self._pending_changes = self._missed_changes()
                while place is not None and self._unread < _CHUNK:
                    offset, source = place
                    event = journal.find_recent(offset)
                    if event is None and source != _CACHED:
                        entry = await (
                            self._reader.journal_entry(offset) if source == _JOURNAL else cursors[source].entry(offset)
                        )
                        event = None if entry is None else unpack(entry)
                    if journal.epoch != epoch:
                        return
                    if event is None:
                        self._send_gap("trimmed")
                    else:
                        self._write_event(event)
                    place = next(plan, None)
                for cursor in cursors:
                    cursor.page = ()
            await self._wait_for_space()

    def _write_unexpired(self, event: Event) -> None:
        """Write an event, or a gap if it's too old."""
        if self._journal.is_expired(event.channel, event.timestamp):
            self._send_gap("expired")
        else:
            self._write_event(event)

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
            await self._delivery.drain(self._subscription.outlet)

    def _is_missing(self, offset: int, channel: str) -> bool:
        """Return whether the subscriber wants an event that no other subscription writes to its outlet."""
        is_presence = channel.startswith(PRESENCE)
        return self._wants(channel) and not any(
            (each.last_change if is_presence else each.since) < offset and each.matches(channel)
            for each in self._others
        )
