"""The journal of all channels, and the history of each channel.

The journal is one stream of the store, like a JetStream stream with many subjects. Workers deliver in its order, so an
offset is a position on any number of channels, including wildcards, and an event needs only one id. The newest events
are also cached in decoded form (see `Journal.recent`), because most reconnecting clients missed only these.

A channel's history is kept longer than the journal, so a busy channel doesn't displace a quiet one. The history of a
client's channel is its mailbox.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from msgspec import Struct, field

from millstream._limits import Limiter, Rate
from millstream._stores.base import ONCE_SECONDS, Entry, Gap, Index, Position
from millstream._stores.store import Store
from millstream.hub._channels import CLIENT, PRESENCE, HubLimits, topic_for
from millstream.hub._event import Event, StoredEvent, pack, position_id, unpack

JOURNAL = "hub:journal"
_CHANNEL = "hub:channel:"
_MAILBOX = "mailbox:"
"""A separate kind of stream, so publications don't use its space."""
FIRST_CHANNEL = "$opening"
"""The channel of the journal's first entry, which shows that no earlier entries were trimmed."""
_JOURNAL_TTL = 30 * 86400.0
_MAX_RECENT = 2_000
NEW_IDS = Rate(100_000, int(ONCE_SECONDS))
"""Maximum event ids of one publisher that the store recognizes, in a worker. They take 200 bytes each in Redis."""
_MAX_RECENT_BYTES = 4 * 1024 * 1024


class Journal(Struct):
    """The journal and histories, as written and read by one worker."""

    _store: Store
    limits: HubLimits
    _clock: Callable[[], float]
    epoch: str = ""
    offset: int = 0
    """The last offset that this worker has read."""
    _recent: deque[Event] = field(default_factory=deque[Event])
    _recent_bytes: int = 0
    recent_floor: int = 0
    """The cache contains all events after this offset."""
    _new_ids: Limiter = field(default_factory=lambda: Limiter("ids", NEW_IDS))
    floors: dict[str | None, int] = {}
    """For each followed topic, the offset after which this worker has read all events."""
    start_offset: int = 0
    """The offset at which this worker started reading, or restarted after it last lost events."""

    async def open(self) -> Position:
        """Go to the end of the journal and return the position."""
        log = self._store.log
        while not (entries := await log.newest(JOURNAL, _MAX_RECENT, _MAX_RECENT_BYTES)):
            # An empty stream has no position to resume from. This entry provides one.
            await self.append(StoredEvent(FIRST_CHANNEL, b"", None, None, self._clock()))
        self.epoch = entries[0].position.epoch
        self._restart(entries[0].position.offset - 1)
        for entry in entries:
            self.add(entry)
        return entries[-1].position

    def current_id(self) -> str:
        """Return the id of this worker's position."""
        return position_id(self.epoch, self.offset)

    async def append(self, record: StoredEvent, owner: str = "") -> Position:
        """Append an event to the journal and to its channel's history. `owner` is the publisher.

        Raises:
            StoreFull: The store can't store an event of this size.
            EntryRepeated: An event with this id was recently published on the channel.
        """
        is_known_later = record.id is not None and not (owner and self._new_ids.take(owner) > 0)
        count, age = self.bounds(record.channel)
        # An entry beyond the limit shows that entries were dropped.
        index = Index(history_stream(record.channel), age, count + 1) if count else None
        return await self._store.log.append(
            JOURNAL,
            pack(record),
            ttl=_JOURNAL_TTL,
            max_entries=self.limits.journal,
            index=index,
            once=f"{record.channel}\n{record.id}" if is_known_later else "",
            owner=owner,
            topic=record.channel,
        )

    def add(self, entry: Entry) -> Event:
        """Advance to the next entry and return its event, which is then cached."""
        event = unpack(entry)
        self.offset = event.offset
        recent = self._recent
        recent.append(event)
        self._recent_bytes += len(event.data or b"")
        while len(recent) > _MAX_RECENT or self._recent_bytes > _MAX_RECENT_BYTES:
            oldest = recent.popleft()
            self._recent_bytes -= len(oldest.data or b"")
            self.recent_floor = oldest.offset
        return event

    def reset(self, gap: Gap) -> None:
        """Restart after this worker missed events or the store lost delivered ones."""
        self.floors = dict.fromkeys(self.floors, 0)
        oldest, newest = gap.oldest, gap.newest
        if gap.epoch != self.epoch:
            self.epoch, self.offset = gap.epoch, newest.offset if newest is not None else 0
        elif newest is not None:
            self.offset = min(self.offset, newest.offset)
        self._restart(max(self.offset, oldest.offset - 1) if oldest is not None else self.offset)

    def floor(self, channels: Iterable[str]) -> int:
        """Return the offset after which the cache contains all events on these channels."""
        floors, found = self.floors, self.recent_floor
        for each in channels:
            if not each.startswith(PRESENCE):
                topics = {None, f"{each.partition('.')[0]}.", topic_for(each)} & floors.keys()
                found = max(found, min((floors[topic] for topic in topics), default=self.offset))
        return found

    def recent(self, after: int, max_bytes: int, floor: int) -> tuple[list[Event], int] | None:
        """Return about `max_bytes` of cached events after an offset, and the offset of the last one, or None if the
        cache doesn't go back that far. It has all wanted events after `floor`.
        """
        if after < floor and after != self.offset:
            return None
        events: list[Event] = []
        for event in self.recent_events(after):
            events.append(event)
            max_bytes -= len(event.data or b"")
            if max_bytes <= 0:
                return events, event.offset
        return events, self.offset

    def recent_events(self, after: int) -> Iterator[Event]:
        """Iterate over the cached events after an offset. No event must be added during the iteration."""
        recent = self._recent
        return islice(recent, bisect_right(recent, after, key=_offset), None)

    def find_recent(self, offset: int) -> Event | None:
        """Return the event at an offset, if it's cached."""
        at = bisect_left(self._recent, offset, key=_offset)
        return self._recent[at] if at < len(self._recent) and self._recent[at].offset == offset else None

    async def history(self, channel: str, count: int) -> list[Event]:
        """Return the newest events of a channel, oldest first."""
        limit, age = self.bounds(channel)
        if not (count := min(count, limit)):
            return []
        entries = await self._store.log.newest(history_stream(channel), count)
        oldest = self._clock() - age
        events = [unpack(each) for each in entries if self.is_current(each)]
        return [event for event in events if event.timestamp >= oldest]

    def is_current(self, entry: Entry) -> bool:
        """Return whether an entry belongs to the current epoch."""
        return entry.position.epoch == self.epoch

    def is_expired(self, channel: str, at: float) -> bool:
        """Return whether a time of publication is too old for a channel's history."""
        return at < self._clock() - self.bounds(channel)[1]

    def bounds(self, channel: str) -> tuple[int, float]:
        """Return the maximum number of a channel's events and their maximum age in seconds."""
        limits = self.limits
        if channel.startswith(CLIENT):
            return limits.mailbox, limits.mailbox_age
        return limits.history, limits.history_age

    def _restart(self, floor: int) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self.recent_floor = self.start_offset = floor


def _offset(event: Event) -> int:
    return event.offset


def history_stream(channel: str) -> str:
    """Return the name of a channel's stream."""
    return _MAILBOX + channel.removeprefix(CLIENT) if channel.startswith(CLIENT) else _CHANNEL + channel
