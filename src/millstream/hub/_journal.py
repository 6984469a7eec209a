"""What was published: one journal of all channels, and beside it the history of each channel.

The journal is one stream of the store, as a JetStream stream holds many subjects. Its order is the order in which
every worker delivers, so one offset is a place on all channels at once, wildcards included, and an event needs only
one id for all its readers. The newest events are also held decoded, as far as `Journal.recent` goes back: most of those
who reconnect missed only these.

The history of a channel outlives the journal's bound, so that a busy channel does not push out a quiet one. The
history of a client's channel is its mailbox.
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
"""Another kind of stream: what is published takes no room from it."""
_OPENING: Final = "$opening"
_JOURNAL_TTL: Final = 30 * 86400.0
_RECENT: Final = 2_000
_RECENT_BYTES: Final = 4 * 1024 * 1024


class Journal:
    """The journal and the histories, as one worker writes and has read them."""

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
        """How far this worker has read."""
        self._recent: deque[Event] = deque()
        self._recent_bytes = 0
        self.recent_floor = 0
        """Every event behind this offset that was read is still in `_recent`."""
        self.ids = EventIds()
        """The newest events with ids of their publishers."""
        self.began = 0
        """Where this worker went on after it last lost events: what is behind this offset, it reads or has read."""

    async def open(self) -> Position:
        """Go to the end of the journal; gives the place."""
        log = self._store.log
        while not (entries := await log.newest(JOURNAL, _RECENT, _RECENT_BYTES)):
            # An empty stream has no position to resume from; the first entry gives one to those who come first.
            await self.append(StoredEvent(_OPENING, b"", None, None, self._clock()))
        self.epoch = entries[0].position.epoch
        self._restart(entries[0].position.offset - 1)
        for entry in entries:
            self.take(entry)
        return entries[-1].position

    def place(self) -> str:
        """The id of the place where this worker stands."""
        return position_id(self.epoch, self.offset)

    async def append(self, record: StoredEvent) -> Entry:
        """Add an event to the journal and to its channel's history.

        Raises:
            StoreFull: the store cannot take an event of this size.
        """
        data = pack(record)
        count, age = self.bounds(record.channel)
        # One more than is given out: where it is there, so many were dropped.
        index = Index(history_stream(record.channel), age, count + 1) if count else None
        position = await self._store.log.append(
            JOURNAL, data, ttl=_JOURNAL_TTL, max_entries=self._limits.journal, index=index
        )
        return Entry(position, data)

    def take(self, entry: Entry) -> Event | None:
        """Stand behind the next entry; return its event, which is remembered, or None if it repeats another one."""
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

    def lost(self, gap: Gap) -> None:
        """This worker missed some events, or the store lost some that it had delivered."""
        self.ids.forget()  # the places of lost events are given to others
        oldest, newest = gap.oldest, gap.newest
        if gap.epoch != self.epoch:
            self.epoch, self.offset = gap.epoch, newest.offset if newest is not None else 0
        elif newest is not None:
            self.offset = min(self.offset, newest.offset)
        self._restart(max(self.offset, oldest.offset - 1) if oldest is not None else self.offset)

    def recent(self, after: int, max_bytes: int) -> tuple[list[Event], int] | None:
        """Return events that this worker has read behind an offset, and the offset they reach; None when that is
        longer ago than it remembers. They are about `max_bytes` long.
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
        """Iterate over what it has read behind an offset, as far as it remembers. Read nothing before it ends."""
        recent = self._recent
        return islice(recent, bisect_right(recent, after, key=_offset), None)

    def recall(self, offset: int) -> Event | None:
        """Return the event at an offset, if it is still in memory."""
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
        """Return whether an entry is of the present epoch."""
        return entry.position.epoch == self.epoch

    async def has_history(self, channel: str) -> bool:
        """Whether anything is kept of a channel."""
        return bool(await self._store.log.newest(history_stream(channel), 1))

    def too_old(self, event: Event) -> bool:
        """Whether an event of the journal is past the age of its channel's history."""
        return self.past(event.channel, event.at)

    def past(self, channel: str, at: float) -> bool:
        """Whether what was published then on a channel is past the age of its history."""
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
    """Return the name of the stream that keeps a channel."""
    return _MAILBOX + channel.removeprefix(CLIENT) if channel.startswith(CLIENT) else _CHANNEL + channel
