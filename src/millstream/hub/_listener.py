"""Events for a program, as an async iterator: all of a worker's, or those of a name that workers share.

The events of a name are read by the worker that has its lease, from the position that the store keeps. The position is
saved by compare-and-set after each event, so a worker that lost its lease can't move it.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from logging import getLogger

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, Gap, Position, Store, read_offset
from millstream._stores.changes import Claim
from millstream._stores.health import LogOnce
from millstream.hub._channels import InvalidName, check_pattern, matches, topic_for
from millstream.hub._event import Event, unpack
from millstream.hub._journal import JOURNAL

_PAGE = 100
_POSITION_TTL = 30 * 86400.0
_LEASE = 9.0
"""Seconds after which another worker reads the events of a name whose reader has died. Renewed three times as often."""
_RETRY = 1.0
"""Seconds between attempts while the store doesn't respond."""

logger = getLogger("millstream.hub")


class EventListener:
    """The events of a pattern."""

    def __init__(self, store: Store, pattern: str, name: str, is_open: Callable[[], bool]) -> None:
        """Create it. Arguments and errors are those of `Hub.listen`; it ends once `is_open` returns False."""
        check_pattern(pattern)
        if pattern.startswith("$"):
            raise InvalidName(f"Channels that start with $ are reserved for the hub: {pattern!r}.")
        # Configuration
        self._store = store
        self._pattern = pattern
        self._shared = bool(name)
        self._is_open = is_open
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._claim = Claim(store.kv, f"listener:lease.{digest}", _LEASE)
        self._position_key = f"listener:position.{digest}"
        # Process
        self._holds = not name
        """Whether this listener may read: always without a name, or else while it has the lease."""
        self._saved: bytes | None = None
        """The position as it's saved."""
        self._completed: bytes | None = None
        """The position to save. It differs from `_saved` while it's being saved."""
        self._listens = False
        """Whether the store reports every append."""
        self._wakeup = asyncio.Event()
        self._outage = LogOnce(
            logger, f"Events of {pattern!r} can't be read; retrying", f"Events of {pattern!r} can be read again."
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events. One is done when the next is requested."""
        stop = self._store.log.listen(
            JOURNAL, lambda _: self._wakeup.set(), interrupted=self._wakeup.set, topic=topic_for(self._pattern)
        )
        renewing = asyncio.create_task(self._renew()) if self._shared else None
        try:
            while self._is_open():
                page: Sequence[Entry] = []
                with self._outage:
                    self._wakeup.clear()
                    page = await self._read() if self._holds else []
                if not page:
                    await self._wait()
                for entry in page:
                    event = unpack(entry.data, entry.position.epoch, entry.position.offset)
                    if matches(self._pattern, event.channel):
                        if not self._holds:
                            break
                        yield event
                    elif entry is not page[-1]:
                        continue
                    if not await self._save(entry.position):
                        break  # another worker reads on
        finally:
            stop()
            if renewing is not None:
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)
                with suppress(LocalError, OSError):
                    if self._completed != self._saved:  # canceled in `_save`
                        await self._swap()
                    await self._claim.leave()

    async def _read(self) -> Sequence[Entry]:
        if not self._listens:
            await self._store.log.wait_until_listening(JOURNAL)
            self._listens = True
        if self._shared:
            self._saved = self._completed = await self._store.kv.get(self._position_key)
        if self._saved is None:
            newest = await self._store.log.newest(JOURNAL, 1)
            await self._save(newest[-1].position if newest else None)
            return ()
        epoch, _, digits = self._saved.decode().rpartition(".")
        position = Position(epoch, read_offset(digits) or 1) if epoch else None
        try:
            return await self._store.log.read(JOURNAL, position, _PAGE)
        except Gap as loss:
            logger.warning("Events of %r may be missing, because the journal dropped them.", self._pattern)
            await self._save(loss.resume_from(position))
            return ()

    async def _save(self, position: Position | None) -> bool:
        """Save a position. Return False if another worker has moved it."""
        value = b"-" if position is None else f"{position.epoch}.{position.offset}".encode()
        self._completed = value
        while self._shared:
            with self._outage:
                # A write that failed before may have succeeded nevertheless.
                if not await self._swap() and await self._store.kv.get(self._position_key) != value:
                    return False
                break
            await asyncio.sleep(_RETRY)
        self._saved = value
        return True

    async def _swap(self) -> bool:
        """Replace the saved position, and return whether it was the expected one."""
        return await self._store.kv.compare_and_set(self._position_key, self._saved, self._completed, _POSITION_TTL)

    async def _renew(self) -> None:
        """Keep the lease, or take it once it's free."""
        while True:
            holds = False
            with suppress(LocalError, OSError):
                async with asyncio.timeout(_LEASE / 3):
                    holds = await self._claim.keep()
            if holds and not self._holds:
                self._wakeup.set()
            self._holds = holds
            await asyncio.sleep(_LEASE / 3)

    async def _wait(self) -> None:
        if self._outage.lasts:
            await asyncio.sleep(_RETRY)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEASE / 3):
                await self._wakeup.wait()
