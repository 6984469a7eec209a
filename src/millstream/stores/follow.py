"""Reading a stream and then going on to read it: each entry once, in order, and every loss told.

The bus only says that there is more. Its messages may come late, twice, swapped or not at all: what counts is the
stream itself, whose offsets are dense. So an entry that is the next one is taken as it comes; anything else, and every
interruption of the bus, means that the stream has to be read again.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from millstream.protocol.errors import LocalError
from millstream.stores.base import Entry, Gap, Position, Store

PAUSE: Final = 1.0
"""Seconds until a store that failed is asked again."""
_PAGE: Final = 500

_logger = logging.getLogger("millstream.stores")


class Tail:
    """One reader of one stream.

    It listens from the moment it is made, so nothing slips between the first read and the first message.

    Example:
        >>> tail = Tail(store, "stream", position, take, lost)
        >>> await tail.catch_up()  # all that is there
        >>> await tail.run()  # and all that comes, until it is cancelled
    """

    __slots__ = ("_appended", "_drain", "_lock", "_lost", "_news", "_store", "_stream", "_take", "position", "stop")

    def __init__(
        self,
        store: Store,
        stream: str,
        after: Position | None,
        take: Callable[[Sequence[Entry]], None],
        lost: Callable[[Gap], None],
        *,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            store: where the stream is; it is open.
            stream: its name, which is also the topic on the bus.
            after: the place behind which to read; None for everything that is there.
            take: takes the next entries, in order.
            lost: told before the entries that follow a loss.
            drain: awaited after each page, so that a reader which cannot keep up is not flooded.
        """
        # Configuration
        self._store = store
        self._stream = stream
        self._take = take
        self._lost = lost
        self._drain = drain
        # Process
        self.position = after
        """Everything up to here was taken, or told as lost."""
        self._lock = asyncio.Lock()
        """One read at a time keeps the order."""
        self._news = asyncio.Event()
        self._appended = sys.maxsize
        """The lowest offset that was announced since the last read."""
        self.stop = store.bus.subscribe(stream, self._hear, interrupted=self._news.set)
        """Stop listening. Idempotent."""

    async def catch_up(self) -> None:
        """Take everything that was appended before this call.

        Raises:
            LocalError, OSError: the store cannot be read.
        """
        async with self._lock:
            while await self._read():
                if self._drain is not None:
                    await self._drain()

    async def run(self) -> None:
        """Take what comes, until cancelled. A store that fails is asked again."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self.catch_up()
            except (LocalError, OSError):
                _logger.exception("The stream %s could not be read; it is tried again.", self._stream.partition(":")[0])
                await asyncio.sleep(PAUSE)
                self._news.set()

    async def tell(self, entry: Entry, *, whole: bool = False) -> None:
        """After an append: take the entry here, and let the other readers know, by the `whole` entry or its place."""
        if not self._offer(entry):
            self._look(entry.position)
            await self.catch_up()
        await announce(self._store, self._stream, entry, whole=whole)

    def _offer(self, entry: Entry) -> bool:
        """Take an entry without a read, if it is the next one and no read is under way."""
        here, at = self.position, entry.position
        if here is None or here.offset + 1 != at.offset or here.epoch != at.epoch or self._lock.locked():
            return False
        self.position = at
        self._take((entry,))
        return True

    def _hear(self, message: bytes) -> None:
        epoch, offset, *data = message.split(b" ", 2)
        at = Position(epoch.decode(), int(offset))
        if at != self.position and not (data and self._offer(Entry(at, data[0]))):
            self._look(at)

    def _look(self, at: Position) -> None:
        """Something was appended here. Where that is behind this reader, it is late, or the stream lost its tail."""
        self._appended = min(self._appended, at.offset)
        self._news.set()

    async def _read(self) -> bool:
        """Take one page; False when there was nothing more."""
        here = self.position
        try:
            entries = await self._store.log.read(self._stream, here, _PAGE)
        except Gap as gap:
            self.position = after = gap.resume_from(here)
            if after is not None and self._appended <= after.offset:
                self.position = after = Position(after.epoch, self._appended - 1)
            self._lost(gap if after is None else Gap(gap.epoch, gap.oldest, after))
            return True
        self._appended = sys.maxsize
        if not entries:
            return False
        first, last = entries[0].position, entries[-1].position
        self.position = last
        if last.offset - (first.offset if here is None else here.offset + 1) == len(entries) - 1:
            self._take(entries)
        else:
            self._take_around_holes(entries, here)
        return True

    def _take_around_holes(self, entries: Sequence[Entry], here: Position | None) -> None:
        for entry in entries:
            at = entry.position
            if here is not None and at.offset != here.offset + 1:
                self._lost(Gap(at.epoch, at, entries[-1].position))
            self._take((entry,))
            here = at


async def announce(store: Store, stream: str, entry: Entry, *, whole: bool = False) -> None:
    """Tell those who follow a stream that an entry was appended: by the `whole` entry, or by its place."""
    at = entry.position
    await store.bus.publish(stream, b"%b %d" % (at.epoch.encode(), at.offset) + (b" " + entry.data if whole else b""))
