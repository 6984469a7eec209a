"""Reading a stream and then going on to read it: each entry once, in order, and every loss told.

What is heard of a stream is a hint, which may come late, twice or not at all: what counts is the stream itself, whose
offsets are dense. So an entry that is the next one is taken as it comes; anything else, and every interruption, means
that the stream has to be read again.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from millstream._stores.base import Entry, EventLog, Gap, Position
from millstream._stores.health import Trouble

PAUSE: Final = 1.0
"""Seconds until a store that failed is asked again."""
PATIENCE: Final = 1.0
"""Seconds until an entry that was not heard of is read."""
_PAGE: Final = 500

_logger = logging.getLogger("millstream.stores")


class Tail:
    """One reader of one stream.

    It listens from the moment it is made, so nothing slips between the first read and the first message.

    Example:
        >>> tail = Tail(store.log, "stream", position, take, lost)
        >>> await tail.catch_up()  # all that is there
        >>> await tail.run()  # and all that comes, until it is cancelled
    """

    __slots__ = (
        "_appended", "_drain", "_listens", "_lock", "_log", "_lost", "_news", "_stream", "_take", "_trouble",
        "_waiting", "position", "stop",
    )  # fmt: skip

    def __init__(
        self,
        log: EventLog,
        stream: str,
        after: Position | None,
        take: Callable[[Sequence[Entry]], None],
        lost: Callable[[Gap], None],
        *,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            log: where the stream is; its store is open.
            stream: its name.
            after: the place behind which to read; None for everything that is there.
            take: takes the next entries, in order.
            lost: told before the entries that follow a loss.
            drain: awaited after each page, so that a reader which cannot keep up is not flooded.
        """
        # Configuration
        self._log = log
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
        name = stream.partition(":")[0]
        self._trouble = Trouble(
            _logger, f"The stream {name} can't be read, which is tried again", f"The stream {name} is read again."
        )
        self._appended = sys.maxsize
        """The lowest offset that was heard of since the last read."""
        self._listens = False
        """It is certain that every append is heard."""
        self._waiting: list[tuple[Position, asyncio.Future[None]]] = []
        """Those who wait until this reader is behind a place."""
        self.stop = log.listen(stream, self._hear, interrupted=self._news.set)
        """Stop listening. Idempotent."""

    async def catch_up(self) -> None:
        """Take everything that was appended before this call.

        Raises:
            LocalError, OSError: the store cannot be read.
        """
        async with self._lock:
            if not self._listens:
                await self._log.listening(self._stream)
                self._listens = True
            while await self._read():
                if self._drain is not None:
                    await self._drain()

    async def run(self) -> None:
        """Take what comes, until cancelled. A store that fails is asked again."""
        while True:
            await self._news.wait()
            self._news.clear()
            with self._trouble:
                await self.catch_up()
            if self._trouble.lasts:
                await asyncio.sleep(PAUSE)
                self._news.set()

    async def reach(self, at: Position) -> None:
        """Return when everything up to a place, where this program appended, was taken. What others appended before it
        is on its way; only where it does not come, the stream is read.
        """
        here = self.position
        if here is not None and here.epoch == at.epoch and here.offset >= at.offset:
            return
        arrived = asyncio.get_running_loop().create_future()
        self._waiting.append((at, arrived))
        await asyncio.wait([arrived], timeout=PATIENCE)
        self._waiting = [each for each in self._waiting if each[1] is not arrived]
        if not arrived.done():
            self._look(at)
            await self.catch_up()

    def _advance(self, position: Position) -> None:
        self.position = position
        for at, arrived in self._waiting:
            if at.offset <= position.offset and not arrived.done():
                arrived.set_result(None)

    def _offer(self, entry: Entry) -> bool:
        """Take an entry without a read, if it is the next one and no read is under way."""
        here, at = self.position, entry.position
        if here is None or here.offset + 1 != at.offset or here.epoch != at.epoch or self._lock.locked():
            return False
        self._take((entry,))
        self._advance(at)
        return True

    def _hear(self, entry: Entry) -> None:
        if entry.position != self.position and not self._offer(entry):
            self._look(entry.position)

    def _look(self, at: Position) -> None:
        """Something was appended here. Where that is behind this reader, it is late, or the stream lost its tail."""
        self._appended = min(self._appended, at.offset)
        self._news.set()

    async def _read(self) -> bool:
        """Take one page; False when there was nothing more."""
        here = self.position
        try:
            entries = await self._log.read(self._stream, here, _PAGE)
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
        if last.offset - (first.offset if here is None else here.offset + 1) == len(entries) - 1:
            self._take(entries)
        else:
            self._take_around_holes(entries, here)
        self._advance(last)
        return True

    def _take_around_holes(self, entries: Sequence[Entry], here: Position | None) -> None:
        for entry in entries:
            at = entry.position
            if here is not None and at.offset != here.offset + 1:
                self._lost(Gap(at.epoch, at, entries[-1].position))
            self._take((entry,))
            here = at
