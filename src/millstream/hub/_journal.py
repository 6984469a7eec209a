"""The journal of all channels, and the history of each channel.

The journal is one stream of the store, like a JetStream stream with many subjects. All workers deliver in its order, so
one offset is a position on all channels, including wildcards, and one id per event serves all readers. The newest
events are also cached in decoded form (see `Journal.recent`), because most clients that reconnect missed only these.

A channel's history outlives the journal, so a busy channel doesn't displace a quiet one. The history of a client's
channel is its mailbox.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from millstream._stores.base import Entry, Gap, Index, Position, Store
from millstream.hub._channels import CLIENT
from millstream.hub._event import Event, StoredEvent, pack, position_id, unpack
from millstream.hub._event_ids import EventIds, KnownEvent
from millstream.hub._limits import HubLimits

JOURNAL: Final = "hub:journal"
_CHANNEL: Final = "hub:channel:"
_MAILBOX: Final = "mailbox:"
"""A separate kind of stream, so publications use none of its space."""
_OPENING: Final = "$opening"
_JOURNAL_TTL: Final = 30 * 86400.0
_RECENT: Final = 2_000
_RECENT_BYTES: Final = 4 * 1024 * 1024


class Journal:
    """The journal and histories, as written and read by one worker."""

    __slots__ = (
        "_clock", "_limits", "_recent", "_recent_bytes", "_store", "began", "epoch", "ids", "offset", "recent_floor",
    )  # fmt: skip

    def __init__(self, store: Store, limits: HubLimits, clock: Callable[[], float]) -> None:
        # configuration
        self._store = store
        self._limits = limits
        self._clock = clock
        # process
        self.epoch = ""
        self.offset = 0
        """The offset up to which this worker has read."""
        self._recent: deque[Event] = deque()
        self._recent_bytes = 0
        self.recent_floor = 0
        """All events after this offset that were read are still in `_recent`."""
        self.ids = EventIds()
        """The newest events with publisher-assigned ids."""
        self.began = 0
        """The offset at which this worker continued after it last lost events. Later events are or will be read."""

    async def open(self) -> Position:
        """Go to the end of the journal and return the position."""
        log = self._store.log
        while not (entries := await log.newest(JOURNAL, _RECENT, _RECENT_BYTES)):
            # An empty stream has no position to resume from. This entry provides one.
            await self.append(StoredEvent(_OPENING, b"", None, None, self._clock()))
        self.epoch = entries[0].position.epoch
        self._restart(entries[0].position.offset - 1)
        for entry in entries:
            self.take(entry)
        return entries[-1].position

    def place(self) -> str:
        """Return the id of this worker's position."""
        return position_id(self.epoch, self.offset)

    async def append(self, record: StoredEvent) -> Entry:
        """Append an event to the journal and to its channel's history.

        Raises:
            StoreFull: The store can't store an event of this size.
        """
        data = pack(record)
        count, age = self.bounds(record.channel)
        # One more than the limit, which shows whether entries were dropped.
        index = Index(history_stream(record.channel), age, count + 1) if count else None
        position = await self._store.log.append(
            JOURNAL, data, ttl=_JOURNAL_TTL, max_entries=self._limits.journal, index=index
        )
        return Entry(position, data)

    def take(self, entry: Entry) -> Event | None:
        """Advance to the next entry. Return its event, which is cached, or None if it repeats another one."""
        event = unpack(entry.data, entry.position.epoch, entry.position.offset)
        self.offset = event.offset
        if event.id != position_id(self.epoch, event.offset):
            known = KnownEvent(event.channel, event.offset, event.at)
            if not self.ids.add(event.id, known):
                return None
        recent = self._recent
        recent.append(event)
        self._recent_bytes += len(event.data or b"")
        while len(recent) > _RECENT or self._recent_bytes > _RECENT_BYTES:
            oldest = recent.popleft()
            self._recent_bytes -= len(oldest.data or b"")
            self.recent_floor = oldest.offset
        return event

    def reset(self, gap: Gap) -> None:
        """Reset, because this worker missed events or the store lost delivered ones."""
        self.ids.forget()  # new events reuse the offsets of lost ones
        oldest, newest = gap.oldest, gap.newest
        if gap.epoch != self.epoch:
            self.epoch, self.offset = gap.epoch, newest.offset if newest is not None else 0
        elif newest is not None:
            self.offset = min(self.offset, newest.offset)
        self._restart(max(self.offset, oldest.offset - 1) if oldest is not None else self.offset)

    def recent(self, after: int, max_bytes: int) -> tuple[list[Event], int] | None:
        """Return cached events after an offset, about `max_bytes` long, and the offset they reach. None if the cache
        doesn't go back that far.
        """
        if after < self.recent_floor and after != self.offset:
            return None
        events: list[Event] = []
        for event in self.recent_events(after):
            events.append(event)
            max_bytes -= len(event.data or b"")
            if max_bytes <= 0:
                return events, event.offset
        return events, self.offset

    def recent_events(self, after: int = 0) -> Iterator[Event]:
        """Iterate over the cached events after an offset. Nothing must be read during the iteration."""
        recent = self._recent
        return islice(recent, bisect_right(recent, after, key=_offset), None)

    def recall(self, offset: int) -> Event | None:
        """Return the event at an offset, if it's cached."""
        at = bisect_left(self._recent, offset, key=_offset)
        return self._recent[at] if at < len(self._recent) and self._recent[at].offset == offset else None

    async def history(self, channel: str, count: int) -> list[Event]:
        """Return the newest events of a channel, oldest first."""
        most, age = self.bounds(channel)
        if not (count := min(count, most)):
            return []
        entries = await self._store.log.newest(history_stream(channel), count)
        oldest = self._clock() - age
        events = [unpack(each.data, self.epoch, each.position.offset) for each in entries if self.is_current(each)]
        return [event for event in events if event.at >= oldest]

    def is_current(self, entry: Entry) -> bool:
        """Return whether an entry belongs to the current epoch."""
        return entry.position.epoch == self.epoch

    async def has_history(self, channel: str) -> bool:
        """Return whether any history of a channel exists."""
        return bool(await self._store.log.newest(history_stream(channel), 1))

    def too_old(self, event: Event) -> bool:
        """Return whether an event of the journal has expired from its channel's history."""
        return self.past(event.channel, event.at)

    def past(self, channel: str, at: float) -> bool:
        """Return whether events published at a time have expired from a channel's history."""
        return at < self._clock() - self.bounds(channel)[1]

    def bounds(self, channel: str) -> tuple[int, float]:
        """Return how many events of a channel are kept, and for how many seconds."""
        limits = self._limits
        if channel.startswith(CLIENT):
            return limits.mailbox, limits.mailbox_age
        return limits.history, limits.history_age

    def _restart(self, floor: int) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self.recent_floor = self.began = floor


def _offset(event: Event) -> int:
    return event.offset


def history_stream(channel: str) -> str:
    """Return the name of a channel's stream."""
    return _MAILBOX + channel.removeprefix(CLIENT) if channel.startswith(CLIENT) else _CHANNEL + channel
