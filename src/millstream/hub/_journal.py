"""What was published: one journal of all channels, and beside it the history of each channel.

The journal is one stream of the store, as a JetStream stream holds many subjects. Its order is the order in which
every worker delivers, so one offset is a place on all channels at once, wildcards included, and an event needs only
one id whoever reads it. The newest events are also held decoded, as far as `Journal.recent` goes back: most of those
who reconnect missed only these.

The history of a channel outlives the journal's bound, so that a busy channel does not push out a quiet one. The
history of a client's channel is its mailbox.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Final

from millstream._stores.base import Entry, Gap, Index, Position, Store
from millstream.hub._channels import CLIENT
from millstream.hub._event import Event, Record, channel_of, pack, position_id, unpack
from millstream.hub._limits import HubLimits
from millstream.hub._shared_reads import SharedReads

JOURNAL: Final = "hub:journal"
_CHANNEL: Final = "hub:channel:"
_MAILBOX: Final = "mailbox:"
"""Another kind of stream: what is published takes no room from it."""
_OPENING: Final = "$opening"
_JOURNAL_TTL: Final = 30 * 86400.0
_PAGE: Final = 500
_RECENT: Final = 2_000
_RECENT_BYTES: Final = 4 * 1024 * 1024

Wants = Callable[[str], bool]
"""Whether a channel is wanted."""


class Journal:
    """The journal and the histories, as one worker writes and has read them."""

    __slots__ = (
        "_clock", "_limits", "_recent", "_recent_bytes", "_recent_floor", "_shared", "_store", "epoch", "offset",
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
        self._recent_floor = 0
        """Every event behind this offset that was read is still in `_recent`."""
        self._shared = SharedReads()

    async def open(self) -> Position:
        """Go to the end of the journal; gives the place."""
        log = self._store.log
        while not (entries := await log.newest(JOURNAL, _RECENT, _RECENT_BYTES)):
            # An empty stream has no position to resume from; the first entry gives one to those who come first.
            await self.append(Record(_OPENING, b"", None, None, self._clock()))
        self.epoch = entries[0].position.epoch
        self._restart(entries[0].position.offset - 1)
        for entry in entries:
            self.take(entry)
        return entries[-1].position

    def place(self) -> str:
        """The id of the place where this worker stands."""
        return position_id(self.epoch, self.offset)

    async def append(self, record: Record) -> Entry:
        """Add an event to the journal and to its channel's history.

        Raises:
            StoreFull: the store cannot take an event of this size.
        """
        data = pack(record)
        count, age = self._bounds(record.channel)
        # One more than is given out: where it is there, so many were dropped.
        index = Index(_history(record.channel), age, count + 1) if count else None
        position = await self._store.log.append(
            JOURNAL, data, ttl=_JOURNAL_TTL, max_entries=self._limits.journal, index=index
        )
        return Entry(position, data)

    def take(self, entry: Entry) -> Event:
        """Stand behind the next entry; gives its event, and remembers it."""
        event = self._event(entry)
        self.offset = event.offset
        recent = self._recent
        recent.append(event)
        self._recent_bytes += len(event.data or b"")
        while len(recent) > _RECENT or self._recent_bytes > _RECENT_BYTES:
            oldest = recent.popleft()
            self._recent_bytes -= len(oldest.data or b"")
            self._recent_floor = oldest.offset
        return event

    def lost(self, gap: Gap) -> None:
        """This worker missed some events, or the store lost some that it had delivered."""
        self._shared.forget()  # the places of lost events are given to others
        oldest, newest = gap.oldest, gap.newest
        if gap.epoch != self.epoch:
            self.epoch, self.offset = gap.epoch, 0
        elif newest is not None:
            self.offset = min(self.offset, newest.offset)
        self._restart(max(self.offset, oldest.offset - 1) if oldest is not None else self.offset)

    def recent(self, after: int) -> list[Event] | None:
        """What this worker has read behind an offset; None when that is longer ago than it remembers."""
        if after < self._recent_floor and after != self.offset:
            return None
        return self.remembered(after)

    def remembered(self, after: int = 0) -> list[Event]:
        """What it has read behind an offset, as far as it remembers."""
        behind = list(takewhile(lambda event: event.offset > after, reversed(self._recent)))
        behind.reverse()
        return behind

    async def page(self, after: int, wants: Wants) -> tuple[list[Event], int]:
        """Wanted events behind an offset, from the store, and how far it was looked. What this worker has not read
        yet is left out.

        Raises:
            Gap: some are gone.
        """
        if not after:  # the store began a new epoch, and had nothing when the place was told
            raise Gap(self.epoch, None)
        entries = await self._shared.page(self._store.log, JOURNAL, Position(self.epoch, after))
        last = min(entries[-1].position.offset, self.offset) if entries else after
        return self._wanted(entries, wants), last

    async def held(self, wants: Wants, count: int | None = None) -> list[Event]:
        """The newest wanted events in the journal that this worker has read, oldest first: `count`, or as many as the
        history of one channel has.
        """
        count = self._limits.history if count is None else count
        recent = [event for event in self._recent if wants(event.channel)]
        if len(recent) < count and self._recent_floor:
            recent = [event async for page in self._journal_pages() for event in self._wanted(page, wants)]
        return recent[-count:] if count else []

    async def history(self, channel: str, newest: int = 0, *, recent_apart: bool = False) -> tuple[list[Event], int]:
        """What is kept of a channel, oldest first, and the offset of the newest event that is known to be dropped.

        Args:
            channel: the channel.
            newest: read only so many; 0 reads all.
            recent_apart: the caller adds what `remembered` has, so that a read of some seconds ago may serve.
        """
        count, age = self._bounds(channel)
        if not count:
            return [], self.offset
        stream, count = _history(channel), min(count, newest or count)
        entries: Sequence[Entry]
        read = partial(self._read_history, stream, newest and count + 1)
        if recent_apart and not channel.startswith(CLIENT):
            entries = await self._shared.get(
                (stream, self.epoch, newest and count),
                read,
                since=self.offset,
                usable=lambda since: since >= self._recent_floor,
            )
        else:
            entries = await read()
        events = [self._event(entry) for entry in entries if entry.position.epoch == self.epoch]
        oldest = self._clock() - age
        kept = [event for event in events[-count:] if event.at >= oldest]
        dropped = len(events) - len(kept)
        return kept, events[dropped - 1].offset if dropped else 0

    async def _read_history(self, stream: str, newest: int) -> Sequence[Entry]:
        if newest:
            return await self._store.log.newest(stream, newest)
        return [entry async for page in self._pages(stream) for entry in page]

    def close(self) -> None:
        """Keep nothing that was read for subscribers."""
        self._shared.close()

    async def has_history(self, channel: str) -> bool:
        """Whether anything is kept of a channel."""
        return bool(await self._store.log.newest(_history(channel), 1))

    async def find(self, id: str, wants: Wants) -> int | None:
        """The offset of the newest wanted event to which its publisher gave this id."""
        for event in reversed(self._recent):
            if event.id == id and wants(event.channel):
                return event.offset
        needle, found = id.encode(), None
        if not self._recent_floor:
            return None
        async for page in self._journal_pages():
            for event in self._wanted([entry for entry in page if needle in entry.data], wants):
                if event.id == id:
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
        return limits.history, limits.history_age

    def _event(self, entry: Entry) -> Event:
        return unpack(entry.data, entry.position.epoch, entry.position.offset)

    def _wanted(self, entries: Sequence[Entry], wants: Wants) -> list[Event]:
        """Their events; of those that are not wanted only the channel is decoded."""
        most = self.offset
        return [
            self._event(entry) for entry in entries if entry.position.offset <= most and wants(channel_of(entry.data))
        ]

    async def _journal_pages(self) -> AsyncIterator[Sequence[Entry]]:
        """The journal as far as this worker has read it, from the oldest entry on. Others get their turns."""
        log = self._store.log
        entries = await self._shared.oldest(log, JOURNAL, self.epoch)
        while entries:
            yield entries
            await asyncio.sleep(0)
            last = entries[-1].position
            if last.offset >= self.offset:
                return
            try:
                entries = await self._shared.page(log, JOURNAL, last)
            except Gap:  # trimmed meanwhile, or another epoch: what is left is newer
                entries = [
                    entry for entry in await log.read(JOURNAL, None, _PAGE) if entry.position.offset > last.offset
                ]

    async def _pages(self, stream: str) -> AsyncIterator[Sequence[Entry]]:
        """A stream from its oldest entry on, each once, though the oldest go meanwhile. Others get their turns."""
        after: Position | None = None
        last = 0
        while True:
            try:
                entries = await self._store.log.read(stream, after, _PAGE)
            except Gap:
                after = None
                continue
            if not entries:
                return
            after = entries[-1].position
            yield entries if last < entries[0].position.offset else [e for e in entries if e.position.offset > last]
            last = after.offset
            if len(entries) == _PAGE:
                await asyncio.sleep(0)

    def _restart(self, floor: int) -> None:
        self._recent.clear()
        self._recent_bytes = 0
        self._recent_floor = floor


def _history(channel: str) -> str:
    """The stream that keeps a channel."""
    return _MAILBOX + channel.removeprefix(CLIENT) if channel.startswith(CLIENT) else _CHANNEL + channel
