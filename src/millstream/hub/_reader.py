"""Reads of the journal and histories for subscribers that catch up.

After a restart, thousands of subscribers reconnect at once, and most of them missed the same events, so reads are
shared and cached, with limits on size and time. A subscriber that's waiting for its connection keeps offsets but no
events. When the connection has space, it reads the page again, often from the cache. Up to `MAX_READERS` subscribers
keep pages at the same time.
"""

import asyncio
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from millstream._recent import RecentBytes
from millstream._stores.base import Entry, Gap, Position
from millstream._stores.store import Store
from millstream._tasks import Tasks, has_failed
from millstream.hub._channels import CLIENT
from millstream.hub._event import MAX_IDS, REPEATED, EventIds, unpack_header
from millstream.hub._journal import JOURNAL, Journal, history_stream

_MAX_READS = 10_000
MAX_CACHE_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


class _Read(Struct, Generic[T]):
    """A read in progress, or its cached result."""

    since: int
    """The worker's offset when the read began."""
    task: asyncio.Task[T]
    size: int = 0


class SharedReads(Generic[T]):
    """Reads of one kind, shared by all subscribers of a worker.

    Args:
        size: Returns the size of a result in bytes.
    """

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._reads: RecentBytes[Hashable, _Read[T]] = RecentBytes(
            _MAX_READS, max_bytes=MAX_CACHE_BYTES, size_of=lambda read: read.size
        )
        """Reads that can be shared with more subscribers."""
        self.tasks: Tasks = Tasks()
        """All reads in progress."""

    @property
    def bytes(self) -> int:
        """Total size of cached results in bytes, up to `MAX_CACHE_BYTES`."""
        return self._reads.held

    async def get(
        self,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, T]],
        *,
        since: int,
        usable: Callable[[int, T | None], bool] = lambda since, value: True,
    ) -> T:
        """Return the cached result for a key, or read it.

        Args:
            key: Identifies the read.
            read: Reads the store.
            since: The worker's current offset.
            usable: Returns whether a result read at an offset is still complete enough. The result is None while it's
                being read.
        """
        shared = self._reads.get(key)
        if shared is None or not usable(shared.since, shared.task.result() if shared.size else None):
            shared = _Read(since, self.tasks.spawn(read()))
            self._reads.keep(key, shared)
            shared.task.add_done_callback(partial(self._on_read_done, key, shared))
        return await asyncio.shield(shared.task)

    def _on_read_done(self, key: Hashable, read: _Read[T], done: asyncio.Task[T]) -> None:
        failed = has_failed(done)
        if self._reads.get(key) is not read:
            return  # a later read replaced it, or events were lost since it began
        del self._reads[key]
        if not failed:
            self._reads.keep(key, _Read(read.since, done, self._size(done.result())))

    def forget(self) -> None:
        """Drop all results. Pending reads serve only the callers that are already waiting."""
        self._reads.clear()


PAGE = 500
"""Entries per page. Journal pages start at multiples of this number, so subscribers read the same pages."""
PAGE_BYTES = 512 * 1024
"""Approximate maximum size of a page in bytes."""
MAX_READERS = 8
_PAGE_ALIGNMENT = 16
"""History pages start at multiples of this number of entries."""
_INDEX_OVERHEAD = 600
_INDEX_ENTRY_BYTES = 40

Wants = Callable[[str], bool]
"""Returns whether a channel is wanted."""
Page = Sequence[Entry]


class HistoryIndex(Struct):
    """An index of a channel's history, without the events."""

    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    ids: dict[str, int] = {}
    """The offsets of events with publisher-assigned ids, or `REPEATED`."""
    channels: list[str] = []
    """The channels of the events, in the index of the journal."""

    def start(self, offset: int) -> int:
        """Return the start of the shared page that contains this offset."""
        place = bisect_left(self.offsets, offset)
        place -= place % _PAGE_ALIGNMENT
        return self.offsets[place - 1] if place else 0


class JournalReader:
    """The reads of one worker."""

    _id_search: asyncio.Task[None] | None = None
    """The search of the journal for publisher-assigned ids."""
    _searched = "", 0
    """The epoch and offset up to which the journal was searched for them."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._pages = SharedReads[Page](_page_size)
        self._indexes = SharedReads[HistoryIndex](
            lambda index: _INDEX_OVERHEAD + len(index.offsets) * _INDEX_ENTRY_BYTES
        )
        self._ids = EventIds(MAX_IDS)
        """The events with publisher-assigned ids that the search has found."""
        self.slots = asyncio.Semaphore(MAX_READERS)
        """Acquired while a subscriber keeps pages, and released while it waits for its connection."""

    def forget(self) -> None:
        """Drop cached pages. Called periodically, and when new events reuse the offsets of lost ones."""
        self._pages.forget()
        self._indexes.forget()

    def forget_ids(self) -> None:
        """Drop the ids that were found. Called when new events reuse the offsets of lost ones."""
        self._ids.clear()
        self._searched = "", 0
        self._id_search = None

    async def close(self) -> None:
        """Drop cached pages and stop reading."""
        self.forget()
        await self._pages.tasks.close()
        await self._indexes.tasks.close()

    async def index(self, channel: str, newest: int = 0) -> HistoryIndex:
        """Return the index of a channel's history, or of its newest events.

        Events newer than the oldest cached event can be missing from it.
        """
        if channel.startswith(CLIENT):
            return await self._read_index(channel, newest)
        journal = self._journal
        return await self._indexes.get(
            (channel, journal.epoch, newest),
            lambda: self._read_index(channel, newest),
            since=journal.offset,
            usable=lambda since, _: since >= journal.floor((channel,)),
        )

    async def journal_index(self, patterns: Sequence[str]) -> HistoryIndex:
        """Return the index of the journal. Events newer than the oldest cached event can be missing from it."""
        journal = self._journal
        return await self._indexes.get(
            ("", journal.epoch, 0),
            lambda: self._read_index("", 0),
            since=journal.offset,
            usable=lambda since, _: since >= journal.floor(patterns),
        )

    async def _read_index(self, channel: str, newest: int) -> HistoryIndex:
        """Read the index of a channel's history, or of the journal without a channel."""
        stream, index = history_stream(channel) if channel else JOURNAL, HistoryIndex()
        async with self.slots:
            if newest:
                self._add(index, await self._store.log.newest(stream, newest), stream)
                return index
            start, now = 0, self._journal.offset
            while page := await self.page(stream, start, now):
                self._add(index, page, stream)
                if page[-1].position.offset <= start or not _is_full(page):
                    break
                start = page[-1].position.offset
                await asyncio.sleep(0)
            return index

    def _add(self, index: HistoryIndex, page: Page, stream: str) -> None:
        last = index.offsets[-1] if index.offsets else 0
        for entry in page:
            offset = entry.position.offset
            if offset > last and self._journal.is_current(entry):
                stamp = unpack_header(entry.data)
                index.offsets.append(offset)
                index.times.append(stamp.at)
                if stream == JOURNAL:
                    index.channels.append(sys.intern(stamp.channel))
                elif stamp.id is not None:
                    index.ids[stamp.id] = REPEATED if stamp.id in index.ids else offset

    async def page(self, stream: str, start: int, upto: int) -> Page:
        """Return the page of a stream after an offset, or the oldest page if that page was trimmed.

        Args:
            stream: The journal, or the stream of a history.
            start: An offset (in a history, that of an entry), or 0 for the oldest page.
            upto: The last offset that the page must cover. An older cached page isn't used.
        """
        journal, log = self._journal, self._store.log
        epoch = journal.epoch

        async def read() -> Page:
            if start:
                with suppress(Gap):  # the stream may begin within this page
                    return await log.read(stream, Position(epoch, start), PAGE, PAGE_BYTES)
            return await log.read(stream, None, PAGE, PAGE_BYTES)

        def usable(since: int, page: Page | None) -> bool:
            return since >= upto or (page is not None and _is_full(page))

        return await self._pages.get((stream, epoch, start), read, since=journal.offset, usable=usable)

    async def journal_page(self, start: int | None, after: int) -> tuple[Page, int]:
        """Return journal entries after an offset, and the start of their page for the next call.

        Args:
            start: The start of the last call's page, or None for the first call.
            after: The offset.

        Raises:
            Gap: Some of the entries were trimmed.
        """
        epoch, upto = self._journal.epoch, self._journal.offset
        for begin in dict.fromkeys((after - after % PAGE if start is None else start, after)):
            page = await self.page(JOURNAL, begin, upto)
            if not page or page[0].position.epoch != epoch:
                break  # this is the end or a gap; the read below raises for a gap
            place = bisect_right(page, after, key=_offset)
            if place < len(page) and (place or page[0].position.offset == after + 1):
                return page[place:], begin
        return await self._store.log.read(JOURNAL, Position(epoch, after), PAGE, PAGE_BYTES), after

    async def journal_entry(self, offset: int) -> Entry | None:
        """Return the journal's entry at an offset, or None if it was trimmed."""
        with suppress(Gap):
            page, _ = await self.journal_page(None, offset - 1)
            if page and page[0].position.offset == offset:
                return page[0]
        return None

    async def find(self, id: str, wants: Wants) -> set[int]:
        """Return the offsets of wanted events with a publisher-assigned id, with `REPEATED` for several on a channel.

        All subscribers share a search of the journal. It continues where the last one ended.
        """
        epoch, until = self._journal.epoch, self._journal.offset
        for _ in range(2):  # a search in progress may end too early
            if self._searched[0] == epoch and self._searched[1] >= until:
                break
            if self._id_search is None or self._id_search.done():
                self._id_search = self._pages.tasks.spawn(self._find_ids(self._journal.epoch, self._journal.offset))
            await asyncio.shield(self._id_search)
        return {at for channel, at in self._ids.get(id, {}).items() if not channel or wants(channel)}

    async def _find_ids(self, epoch: str, until: int) -> None:
        """Find the ids of journal entries up to an offset."""
        journal, log = self._journal, self._store.log
        if self._searched[0] != epoch:
            self._ids.clear()  # new events can reuse the offsets of lost ones
            self._searched = epoch, 0
        last = self._searched[1]
        while last < until and journal.epoch == epoch:
            after = Position(epoch, last) if last else None
            try:
                async with self.slots:
                    page = await log.read(JOURNAL, after, PAGE, PAGE_BYTES)
                    for entry in page:
                        stamp = unpack_header(entry.data)
                        if stamp.id is not None and journal.is_current(entry):
                            self._ids.add(stamp.id, stamp.channel, entry.position.offset)
            except Gap:  # trimmed since the last read
                last = 0
                continue
            if not page:
                break
            last = page[-1].position.offset
            await asyncio.sleep(0)
        self._searched = epoch, max(last, until)


class HistoryCursor(Struct):
    """The position of one subscriber in one history."""

    _reader: JournalReader
    _stream: str
    _start: int
    page: Page = ()

    async def entry(self, offset: int) -> Entry | None:
        """Return the entry at an offset after the last one, or None if it was trimmed."""
        page = self.page
        while not page or page[-1].position.offset < offset:
            if page and page[-1].position.offset > self._start:
                self._start = page[-1].position.offset
            elif page:
                return None
            page = await self._reader.page(self._stream, self._start, offset)
            if not page:
                return None
        self.page = page
        place = bisect_left(page, offset, key=_offset)
        return page[place] if page[place].position.offset == offset else None


def _offset(entry: Entry) -> int:
    return entry.position.offset


def _page_size(page: Page) -> int:
    return sum(len(entry.data) for entry in page)


def _is_full(page: Page) -> bool:
    """Return whether later appends can't extend the page."""
    return len(page) == PAGE or _page_size(page) >= PAGE_BYTES
