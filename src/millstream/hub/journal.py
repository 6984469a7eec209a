"""What was published: one journal of all channels, and beside it the history of each channel.

The journal is one stream of the store, as a JetStream stream holds many subjects. Its order is the order in which
every worker delivers, so one offset is a place on all channels at once, wildcards included, and an event needs only
one id whoever reads it. A worker reads the journal behind what it has delivered; the bus only says that there is
more, so nothing is lost or swapped when messages of the bus are. The newest events are also held decoded, as far as
`Journal.recent` goes back: most of those who reconnect missed only these.

The history of a channel outlives the journal's bound, so that a busy channel does not push out a quiet one. The
history of a client's channel is its mailbox.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from itertools import takewhile
from typing import Final

from millstream.hub.channels import CLIENT, PRESENCE
from millstream.hub.event import Event, Record, pack, position_id, unpack
from millstream.hub.limits import HubLimits
from millstream.stores.base import Entry, Gap, Position, Store

JOURNAL: Final = "hub:journal"
_CHANNEL: Final = "hub:channel:"
_MAILBOX: Final = "mailbox:"
"""Another kind of stream: what is published takes no room from it."""
_OPENING: Final = "$opening"
_JOURNAL_TTL: Final = 30 * 86400.0
_PAGE: Final = 500
_RECENT: Final = 2_000
_RECENT_BYTES: Final = 4 * 1024 * 1024


class Journal:
    """The journal and the histories, read and written by one worker."""

    __slots__ = (
        "_after", "_clock", "_limits", "_recent", "_recent_bytes", "_recent_floor", "_store", "epoch", "offset",
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
        self._after: Position | None = None
        """Where the next read begins; None is the oldest entry held, which may have been read already."""
        self._recent: deque[Event] = deque()
        self._recent_bytes = 0
        self._recent_floor = 0
        """Every event behind this offset that was read is still in `_recent`."""

    async def open(self) -> None:
        """Go to the end of the journal."""
        self._restart(self._store.epoch, None)
        await self._skip_to_end()
        if not self.offset:
            # An empty stream has no position to resume from; the first entry gives one to those who come first.
            await self.append(Record(_OPENING, b"", None, None, self._clock()))
            await self._skip_to_end()

    async def _skip_to_end(self) -> None:
        more = True
        while more:
            try:
                events, more = await self.read_on()
            except Gap:  # the oldest went while this worker was reading
                continue
            if events and not self.offset:
                self._recent_floor = events[0].offset
            for event in events:
                self.advance(event)

    def place(self) -> Event:
        """Where this worker stands, for a subscriber to resume from though nothing happened yet."""
        return Event("", None, None, position_id(self.epoch, self.offset), self.offset)

    async def append(self, record: Record) -> int:
        """Add an event to the journal and to its channel's history; returns its offset.

        Raises:
            StoreFull: the store cannot take an event of this size.
        """
        log, limits, data = self._store.log, self._limits, pack(record)
        position = await log.append(JOURNAL, data, ttl=_JOURNAL_TTL, max_entries=limits.journal)
        count, age = self._bounds(record.channel)
        if count:
            # One more than is given out: where it is there, so many were dropped.
            data = position.offset.to_bytes(8, "big") + data
            await log.append(_history(record.channel), data, ttl=age, max_entries=count + 1)
        return position.offset

    async def read_on(self) -> tuple[list[Event], bool]:
        """The next events in order, and whether there may be more. The caller goes through them with `advance`.

        Raises:
            Gap: this worker missed some. The next call goes on with the oldest that is left.
        """
        try:
            entries = await self._store.log.read(JOURNAL, self._after, _PAGE)
        except Gap as gap:
            self._skip(gap)
            raise
        if entries and entries[0].position.epoch != self.epoch:
            self._restart(entries[0].position.epoch, entries[0].position)
            raise Gap(self.epoch, entries[0].position)
        events = [self._event(entry) for entry in entries if entry.position.offset > self.offset]
        if entries and not events:
            self._after = entries[-1].position
        return events, len(entries) == _PAGE

    def advance(self, event: Event) -> None:
        """Stand behind an event that `read_on` gave, and remember it."""
        self._after = Position(self.epoch, event.offset)
        self.offset = event.offset
        recent = self._recent
        recent.append(event)
        self._recent_bytes += len(event.data or b"")
        while len(recent) > _RECENT or self._recent_bytes > _RECENT_BYTES:
            oldest = recent.popleft()
            self._recent_bytes -= len(oldest.data or b"")
            self._recent_floor = oldest.offset

    def recent(self, after: int) -> list[Event] | None:
        """What this worker has read behind an offset; None when that is longer ago than it remembers."""
        if after < self._recent_floor and after != self.offset:
            return None
        return self.remembered(after)

    def remembered(self, after: int) -> list[Event]:
        """What it has read behind an offset, as far as it remembers."""
        behind = list(takewhile(lambda event: event.offset > after, reversed(self._recent)))
        behind.reverse()
        return behind

    async def page(self, after: int) -> list[Event]:
        """Events behind an offset, from the store; those that this worker has not read yet are left out.

        Raises:
            Gap: some are gone.
        """
        if not after:  # the store began a new epoch, and had nothing when the place was told
            raise Gap(self.epoch, None)
        entries = await self._store.log.read(JOURNAL, Position(self.epoch, after), _PAGE)
        return [self._event(entry) for entry in entries if entry.position.offset <= self.offset]

    async def held(self) -> list[Event]:
        """Everything in the journal that this worker has read, from the oldest on."""
        return [self._event(entry) async for entry in self._walk() if entry.position.offset <= self.offset]

    async def history(self, channel: str) -> tuple[list[Event], int]:
        """What is kept of a channel, oldest first, and the offset of the newest event that is known to be dropped."""
        count, age = self._bounds(channel)
        if not count:
            return [], self.offset
        entries = await self._store.log.read(_history(channel), None, count + 1)
        events = [
            unpack(memoryview(entry.data)[8:], self.epoch, int.from_bytes(entry.data[:8], "big"))
            for entry in entries
            if entry.position.epoch == self.epoch
        ]
        # Of several workers, one may be first in the journal and second here.
        events.sort(key=_offset)
        oldest = self._clock() - age
        kept = [event for event in events[-count:] if event.at >= oldest]
        dropped = len(events) - len(kept)
        return kept, events[dropped - 1].offset if dropped else 0

    async def has_history(self, channel: str) -> bool:
        """Whether anything is kept of a channel."""
        return bool(await self._store.log.read(_history(channel), None, 1))

    async def find(self, id: str, wants: Callable[[Event], bool]) -> int | None:
        """The offset of the newest wanted event to which its publisher gave this id."""
        for event in reversed(self._recent):
            if event.id == id and wants(event):
                return event.offset
        needle, found = id.encode(), None
        async for entry in self._walk():
            if needle in entry.data:
                event = self._event(entry)
                if event.id == id and wants(event):
                    found = event.offset
        return found

    def too_old(self, event: Event) -> bool:
        """Whether an event of the journal is past the age of its channel's history."""
        return self.past(event.channel, event.at)

    def past(self, channel: str, at: float) -> bool:
        """Whether what was published then on a channel is past the age of its history."""
        return at < self._clock() - self._bounds(channel)[1]

    def _bounds(self, channel: str) -> tuple[int, float]:
        limits = self._limits
        if channel.startswith(CLIENT):
            return limits.mailbox, limits.mailbox_age
        if channel.startswith(PRESENCE):  # who came and went is no history, but may be resumed from the journal
            return 0, limits.history_age
        return limits.history, limits.history_age

    def _event(self, entry: Entry) -> Event:
        return unpack(entry.data, entry.position.epoch, entry.position.offset)

    async def _walk(self) -> AsyncIterator[Entry]:
        """The journal from its oldest entry on, each once, though the oldest go meanwhile."""
        after: Position | None = None
        last = 0
        while True:
            try:
                entries = await self._store.log.read(JOURNAL, after, _PAGE)
            except Gap:
                after = None
                continue
            for entry in entries:
                if entry.position.offset > last:
                    last = entry.position.offset
                    yield entry
            if len(entries) < _PAGE:
                return
            after = entries[-1].position

    def _skip(self, gap: Gap) -> None:
        """Go on with the oldest entry that is left."""
        self._after = None
        if gap.epoch != self.epoch:
            self._restart(gap.epoch, gap.oldest)
        else:
            self._forget(gap.oldest)

    def _restart(self, epoch: str, oldest: Position | None) -> None:
        self.epoch = epoch
        self.offset = 0
        self._after = None
        self._forget(oldest)

    def _forget(self, oldest: Position | None) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self._recent_floor = oldest.offset if oldest is not None else self.offset


def _history(channel: str) -> str:
    """The stream that keeps a channel."""
    return _MAILBOX + channel.removeprefix(CLIENT) if channel.startswith(CLIENT) else _CHANNEL + channel


def _offset(event: Event) -> int:
    return event.offset
