"""Reads of the store that serve everybody who asks for the same within some seconds.

After a restart thousands of subscribers come back at once, and most of them missed the same events. Pages of the
journal begin at round offsets, so that subscribers who stood at different places read the same page. What is kept is
bounded in bytes and in time; what didn't fit is read again.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from msgspec import Struct

from millstream._stores.base import PAGE_BYTES, Entry, EventLog, Gap, Position

PAGE: Final = 500
"""Entries of a page."""
KEPT_SECONDS: Final = 10.0
KEPT_BYTES: Final = 16 * 1024 * 1024

Key = tuple[object, ...]


class _Kept(Struct):
    """What one read brought."""

    entries: Sequence[Entry]
    since: int
    """Where the worker stood when the read began."""
    size: int
    end: asyncio.TimerHandle


class _Reading(Struct, eq=False):
    """A read that is under way."""

    since: int
    """Where the worker stood when it began."""
    future: asyncio.Future[Sequence[Entry]]


class SharedReads:
    """The reads of one worker."""

    __slots__ = ("_bytes", "_futures", "_kept", "_reading")

    def __init__(self) -> None:
        self._kept: dict[Key, _Kept] = {}
        self._reading: dict[Key, _Reading] = {}
        """Reads that are under way, and may still serve whoever comes."""
        self._futures: set[asyncio.Future[Sequence[Entry]]] = set()
        """All that are under way."""
        self._bytes = 0

    async def page(self, log: EventLog, stream: str, after: Position) -> Sequence[Entry]:
        """Entries behind a position, oldest first, as `EventLog.read` gives them; at most one page.

        Raises:
            Gap: some of them are gone.
        """
        offset = after.offset
        start = offset - offset % PAGE
        while True:
            entries = await self._page_from(log, stream, after.epoch, start)
            if not entries or entries[0].position.epoch != after.epoch:
                return await log.read(stream, after, PAGE)  # the end, or a gap: the store says which
            wanted = [entry for entry in entries if entry.position.offset > offset]
            if wanted:
                whole = wanted[0].position.offset == offset + 1
                return wanted if whole else await log.read(stream, after, PAGE)
            start = entries[-1].position.offset

    async def oldest(self, log: EventLog, stream: str, epoch: str) -> Sequence[Entry]:
        """The first page of what is held."""
        return await self._page_from(log, stream, epoch, 0)

    async def _page_from(self, log: EventLog, stream: str, epoch: str, start: int) -> Sequence[Entry]:
        async def read() -> Sequence[Entry]:
            if start:
                with contextlib.suppress(Gap):  # perhaps only because the stream begins within this page
                    return await log.read(stream, Position(epoch, start), PAGE)
            return await log.read(stream, None, PAGE)

        return await self.get((stream, epoch, start), read, since=start, final=_is_full)

    async def get(
        self,
        key: Key,
        read: Callable[[], Awaitable[Sequence[Entry]]],
        *,
        since: int,
        usable: Callable[[int], bool] = lambda since: True,
        final: Callable[[Sequence[Entry]], bool] = lambda entries: True,
    ) -> Sequence[Entry]:
        """What is kept under a key, else what a read brings.

        Args:
            key: what is read.
            read: reads it.
            since: where the worker stands now.
            usable: says of that place whether what was read there is still enough.
            final: whether what was read may be kept; what isn't kept serves those who wait for this read.
        """
        kept = self._kept.get(key)
        if kept is not None and usable(kept.since):
            return kept.entries
        reading = self._reading.get(key)
        if reading is None or not usable(reading.since):
            future = asyncio.ensure_future(_as_coroutine(read))
            reading = self._reading[key] = _Reading(since, future)
            self._futures.add(future)
            future.add_done_callback(partial(self._done, key, reading, final))
        return await asyncio.shield(reading.future)

    def _done(
        self,
        key: Key,
        reading: _Reading,
        final: Callable[[Sequence[Entry]], bool],
        done: asyncio.Future[Sequence[Entry]],
    ) -> None:
        self._futures.discard(done)
        failed = done.cancelled() or done.exception() is not None
        if self._reading.get(key) is not reading:
            return  # it began too long ago, or before events were lost
        del self._reading[key]
        if failed or not final(done.result()):
            return
        self._drop(key)
        entries = done.result()
        size = sum(len(entry.data) for entry in entries)
        while self._kept and self._bytes + size > KEPT_BYTES:
            self._drop(next(iter(self._kept)))
        if size <= KEPT_BYTES:
            end = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._drop, key)
            self._kept[key] = _Kept(entries, reading.since, size, end)
            self._bytes += size

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.end.cancel()
            self._bytes -= kept.size

    def forget(self) -> None:
        """What was read counts no more, and what is being read serves only those who wait for it."""
        for key in list(self._kept):
            self._drop(key)
        self._reading.clear()

    def close(self) -> None:
        """Keep nothing, and stop what is being read."""
        self.forget()
        for future in list(self._futures):
            future.cancel()


def _is_full(entries: Sequence[Entry]) -> bool:
    """No later append can add to it."""
    return len(entries) == PAGE or sum(len(entry.data) for entry in entries) >= PAGE_BYTES


async def _as_coroutine(read: Callable[[], Awaitable[Sequence[Entry]]]) -> Sequence[Entry]:
    return await read()
