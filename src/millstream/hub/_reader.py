"""Reads of the journal and of the histories for subscribers who catch up.

A subscriber that waits for its connection holds offsets, and no events: when there is room again, it reads the page
again, which other subscribers may have read by then. Only `TURNS` of all subscribers hold pages at the same time.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Struct

from millstream._stores.base import Entry, Gap, Position, Store
from millstream.hub._channels import CLIENT
from millstream.hub._event import stamp_of
from millstream.hub._event_ids import KnownEvent
from millstream.hub._journal import JOURNAL, Journal, history_stream
from millstream.hub._shared_reads import SharedReads

PAGE: Final = 500
"""Entries of a page. Pages of the journal begin at multiples of it, so that subscribers read the same ones."""
PAGE_BYTES: Final = 512 * 1024
"""Bytes of a page, give or take one entry."""
TURNS: Final = 8
_ALIGNED: Final = 16
"""Pages of a history begin at multiples of so many entries."""
_INDEX_BYTES: Final = 600
_INDEXED_BYTES: Final = 40

Wants = Callable[[str], bool]
"""Whether a channel is wanted."""
Page = Sequence[Entry]


class HistoryIndex(Struct, frozen=True):
    """What the history of one channel holds, without the events."""

    offsets: "array[int]"
    times: "array[float]"
    ids: dict[str, int]
    """The offsets of events with ids of their publishers."""

    def start(self, offset: int) -> int:
        """Return the offset behind which a page begins that many subscribers read, for one that has this offset."""
        place = bisect_left(self.offsets, offset)
        place -= place % _ALIGNED
        return self.offsets[place - 1] if place else 0


class JournalReader:
    """The reads of one worker."""

    __slots__ = ("_indexes", "_indexing", "_journal", "_pages", "_store", "turns")

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._pages = SharedReads[Page](_page_size)
        self._indexes = SharedReads[HistoryIndex](_index_size)
        self._indexing: tuple[str, asyncio.Task[None]] | None = None
        """The epoch whose journal was searched for ids of publishers, once, and the search."""
        self.turns = asyncio.Semaphore(TURNS)
        """Hold it while you hold pages, and not while you wait for a connection."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of pages kept for the next subscribers."""
        return self._pages.bytes

    def forget(self) -> None:
        """Drop what was read: the offsets of lost events are given to others."""
        self._pages.forget()
        self._indexes.forget()

    def close(self) -> None:
        """Drop what was read, and stop reading."""
        self._pages.close()
        self._indexes.close()
        if self._indexing is not None:
            self._indexing[1].cancel()

    async def index(self, channel: str, newest: int = 0) -> HistoryIndex:
        """Return what the history of a channel holds, of all or of some of the newest events.

        What came since the oldest event in the worker's memory may be missing.
        """
        if channel.startswith(CLIENT):
            return await self._read_index(channel, newest)
        journal = self._journal
        return await self._indexes.get(
            (channel, journal.epoch, newest),
            lambda: self._read_index(channel, newest),
            since=journal.offset,
            usable=lambda since, _: since >= journal.recent_floor,
        )

    async def _read_index(self, channel: str, newest: int) -> HistoryIndex:
        stream, index = history_stream(channel), HistoryIndex(array("q"), array("d"), {})
        async with self.turns:
            if newest:
                self._add(index, await self._store.log.newest(stream, newest))
                return index
            start, now = 0, self._journal.offset
            while page := await self.history_page(stream, start, now):
                self._add(index, page)
                if page[-1].position.offset <= start or not _is_full(page):
                    break
                start = page[-1].position.offset
                await asyncio.sleep(0)
            return index

    def _add(self, index: HistoryIndex, page: Page) -> None:
        last = index.offsets[-1] if index.offsets else 0
        for entry in page:
            offset = entry.position.offset
            if offset > last and self._journal.is_current(entry):
                stamp = stamp_of(entry.data)
                index.offsets.append(offset)
                index.times.append(stamp.at)
                if stamp.id is not None:
                    index.ids[stamp.id] = offset

    async def history_page(self, stream: str, start: int, upto: int) -> Page:
        """Return the page of a history behind an offset, or the oldest one where that is gone.

        Args:
            stream: the stream of the history.
            start: the offset of one of its entries; 0 for the oldest page.
            upto: entries up to this offset must not be missing because the page was read before they were there.
        """

        def usable(since: int, page: Page | None) -> bool:
            return since >= upto or (page is not None and _is_full(page))

        return await self._read_page(stream, start, usable, lambda page: True)

    async def journal_page(self, start: int | None, after: int) -> tuple[Page, int]:
        """Return entries of the journal behind the offset `after`, and where their page begins, for the next call.

        Args:
            start: where the page of the last call began; None for the first call.
            after: the offset.

        Raises:
            Gap: some of them are gone.
        """
        epoch = self._journal.epoch
        for begin in dict.fromkeys((after - after % PAGE if start is None else start, after)):
            page = await self._read_page(JOURNAL, begin, lambda since, page: True, _is_full)
            if not page or page[0].position.epoch != epoch:
                break  # the end, or a gap: the store says which
            place = bisect_right(page, after, key=_offset)
            if place < len(page) and (place or page[0].position.offset == after + 1):
                return page[place:], begin
        return await self._store.log.read(JOURNAL, Position(epoch, after), PAGE, PAGE_BYTES), after

    async def _read_page(
        self, stream: str, start: int, usable: Callable[[int, Page | None], bool], final: Callable[[Page], bool]
    ) -> Page:
        journal, log = self._journal, self._store.log
        epoch = journal.epoch

        async def read() -> Page:
            if start:
                with suppress(Gap):  # perhaps only because the stream begins within this page
                    return await log.read(stream, Position(epoch, start), PAGE, PAGE_BYTES)
            return await log.read(stream, None, PAGE, PAGE_BYTES)

        key = (stream, epoch, start)
        return await self._pages.get(key, read, since=journal.offset, usable=usable, final=final)

    async def find(self, id: str, wants: Wants) -> int | None:
        """Return the offset of the newest wanted event to which its publisher gave an id, or None.

        The journal of a worker is searched once; from then on the worker knows the ids.
        """
        journal = self._journal
        if not journal.ids.find(id) and journal.recent_floor:
            if self._indexing is None or self._indexing[0] != journal.epoch or _failed(self._indexing[1]):
                self._indexing = journal.epoch, asyncio.create_task(self._index_journal(journal.epoch))
            await asyncio.shield(self._indexing[1])
        return max((each.offset for each in journal.ids.find(id) if wants(each.channel)), default=None)

    async def _index_journal(self, epoch: str) -> None:
        """Remember the ids in the journal that came before this worker."""
        journal, log = self._journal, self._store.log
        until, last = journal.began, 0
        while last < until and journal.epoch == epoch:
            after = Position(epoch, last) if last else None
            try:
                async with self.turns:
                    page = await log.read(JOURNAL, after, PAGE, PAGE_BYTES)
                    for entry in page:
                        stamp = stamp_of(entry.data)
                        if stamp.id is not None and journal.is_current(entry) and entry.position.offset <= until:
                            known = KnownEvent(stamp.channel, entry.position.offset, stamp.at)
                            journal.ids.add(stamp.id, known)
            except Gap:  # trimmed since the last read
                last = 0
                continue
            if not page:
                return
            last = page[-1].position.offset
            await asyncio.sleep(0)


class HistoryCursor:
    """The place of one subscriber in one history."""

    __slots__ = ("_page", "_reader", "_start", "_stream")

    def __init__(self, reader: JournalReader, channel: str, start: int) -> None:
        self._reader = reader
        self._stream = history_stream(channel)
        self._start = start
        self._page: Page = ()

    async def entry(self, offset: int) -> Entry | None:
        """Return the entry at an offset behind the last one; None when it is gone."""
        page = self._page
        while not page or page[-1].position.offset < offset:
            if page and page[-1].position.offset > self._start:
                self._start = page[-1].position.offset
            elif page:
                return None
            page = await self._reader.history_page(self._stream, self._start, offset)
            if not page:
                return None
        self._page = page
        place = bisect_left(page, offset, key=_offset)
        return page[place] if page[place].position.offset == offset else None

    def release(self) -> None:
        """Hold no page."""
        self._page = ()


def _offset(entry: Entry) -> int:
    return entry.position.offset


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _page_size(page: Page) -> int:
    return sum(len(entry.data) for entry in page)


def _index_size(index: HistoryIndex) -> int:
    return _INDEX_BYTES + len(index.offsets) * _INDEXED_BYTES


def _is_full(page: Page) -> bool:
    """Whether no later append can add to it."""
    return len(page) == PAGE or _page_size(page) >= PAGE_BYTES
