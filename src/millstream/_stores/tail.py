"""Read a stream and follow it: each entry once, in order, and every loss reported.

A store pushes entries in order, or says that it was interrupted (`Log.listen`). So an entry that comes while the reader
is up to date is taken at once, without a read. After an interruption, the stream is read from the reader's position,
and `Gap` says whether something is missing.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from millstream._stores.base import Entry, Gap, Log, Position
from millstream._stores.health import LogOnce

PAUSE: Final = 1.0
"""Seconds before a store that failed is asked again."""
PATIENCE: Final = 1.0
"""Seconds before an entry that wasn't pushed is read."""
_PAGE: Final = 500

_logger = logging.getLogger("millstream.stores")


def consecutive(hear: Callable[[Entry], None], interrupted: Callable[[], None] | None) -> Callable[[Entry], None]:
    """Wrap a listener for a store whose offsets are consecutive, and interrupt it where one is missing."""
    if interrupted is None:
        return hear
    last: Position | None = None

    def check(entry: Entry) -> None:
        nonlocal last
        before, last = last, entry.position
        if before is not None and before.epoch == last.epoch and before.offset + 1 == last.offset:
            hear(entry)
            return
        if before is not None and before.epoch != last.epoch:
            hear(entry)  # so that the listener knows from where the new epoch is new to it
        interrupted()

    return check


class Tail:
    """A reader of one stream. It listens from the moment it's made.

    Example:
        >>> tail = Tail(store.log, "stream", position, take, lost)
        >>> await tail.catch_up()  # everything that is there
        >>> await tail.run()  # everything that comes, until cancelled
    """

    __slots__ = (
        "_drain", "_in_step", "_listens", "_lock", "_log", "_log_once", "_lost", "_news", "_pushed", "_stream", "_take",
        "_waiting", "position", "stop",
    )  # fmt: skip

    def __init__(
        self,
        log: Log,
        stream: str,
        after: Position | None,
        take: Callable[[Sequence[Entry]], None],
        lost: Callable[[Gap], None],
        *,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            log: of an open store.
            stream: its name.
            after: the position to read after; None for everything that is there.
            take: takes the next entries, in order.
            lost: called before the entries that follow a loss.
            drain: awaited after each page, so that a reader that can't keep up isn't flooded.
        """
        # Configuration
        self._log = log
        self._stream = stream
        self._take = take
        self._lost = lost
        self._drain = drain
        # Process
        self.position = after
        """Everything up to here was taken, or reported as lost."""
        self._lock = asyncio.Lock()
        """One read at a time keeps the order."""
        self._news = asyncio.Event()
        name = stream.partition(":")[0]
        self._log_once = LogOnce(
            _logger, f"The stream {name} can't be read, which is tried again", f"The stream {name} is read again."
        )
        self._listens = False
        """The store pushes every append."""
        self._in_step = False
        """Whether every entry after `position` has been pushed."""
        self._pushed = sys.maxsize
        """The lowest offset of another epoch that was pushed since the last read."""
        self._waiting: list[tuple[Position, asyncio.Future[None]]] = []
        """Callers of `reach`."""
        self.stop = log.listen(stream, self._hear, interrupted=self._interrupt)
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
            self._in_step = True
            try:
                while await self._read():
                    if self._drain is not None:
                        await self._drain()
            except BaseException:
                self._in_step = False
                raise

    async def run(self) -> None:
        """Take what comes, until cancelled. A store that fails is asked again."""
        if not self._listens:
            self._news.set()
        while True:
            await self._news.wait()
            self._news.clear()
            with self._log_once:
                await self.catch_up()
            if self._log_once.lasts:
                await asyncio.sleep(PAUSE)
                self._news.set()

    async def reach(self, at: Position) -> None:
        """Return when everything up to a position, where this program appended, was taken. Usually it's pushed soon;
        otherwise the stream is read.
        """
        here = self.position
        if here is not None and here.epoch == at.epoch and here.offset >= at.offset:
            return
        arrived = asyncio.get_running_loop().create_future()
        self._waiting.append((at, arrived))
        await asyncio.wait([arrived], timeout=PATIENCE)
        self._waiting = [each for each in self._waiting if each[1] is not arrived]
        if not arrived.done():
            await self.catch_up()

    def _advance(self, position: Position) -> None:
        self.position = position
        for at, arrived in self._waiting:
            if at.offset <= position.offset and not arrived.done():
                arrived.set_result(None)

    def _hear(self, entry: Entry) -> None:
        here, at = self.position, entry.position
        if here is not None and here.epoch != at.epoch:
            self._pushed = min(self._pushed, at.offset)
            self._interrupt()
        elif self._lock.locked() or not self._in_step or here is None:
            self._interrupt()
        elif at.offset > here.offset:
            self._take((entry,))
            self._advance(at)

    def _interrupt(self) -> None:
        self._in_step = False
        self._news.set()

    async def _read(self) -> bool:
        """Take one page; False when there was nothing more."""
        here = self.position
        try:
            entries = await self._log.read(self._stream, here, _PAGE)
        except Gap as gap:
            after = gap.resume_from(here)
            if here is not None and here.epoch != gap.epoch:
                # The entries of another epoch may have been taken before: go on with those that are surely new.
                after = gap.newest
                if after is not None and self._pushed <= after.offset:
                    after = Position(after.epoch, self._pushed - 1) if self._pushed > 1 else None
                gap = Gap(gap.epoch, gap.oldest, after)
            self._pushed = sys.maxsize
            self.position = after
            self._lost(gap)
            return True
        self._pushed = sys.maxsize
        if not entries:
            return False
        self._take(entries)
        self._advance(entries[-1].position)
        return True
