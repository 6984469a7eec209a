"""The connection that waits: one blocking read on all streams of the hub's slot that this worker follows.

It always goes on behind the last entry that it had, so a connection that breaks loses nothing. What was lost leaves a
hole in the offsets, and whoever takes the entries sees it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import StoreUnavailable
from millstream._stores.redis.commands import Commands
from millstream._stores.redis.link import Link, Lost, Refused
from millstream._stores.redis.routes import Routes

_PAGE: Final = 64
_PAUSE: Final = 0.2
_PAUSES: Final = 10
_TRIES: Final = 40
_TURN: Final = 0.05

Fields = Sequence[bytes]
Take = Callable[[str, Fields], None]
"""Takes the id of an entry, and its fields with their values."""

_logger = logging.getLogger("millstream.stores")


class Reader:
    """Reads along. `run` is its task."""

    def __init__(self, routes: Routes, commands: Commands, key: str) -> None:
        # configuration
        self._routes = routes
        self._commands = commands
        self._key = key
        """Any key of the hub's slot."""
        self.connected: Callable[[], None] | None = None
        """Called with each new connection."""
        # process
        self._wanted: dict[str, Take] = {}
        self._places: dict[str, str] = {}
        """The last id of each stream."""
        self._covered: frozenset[str] = frozenset()
        """What the read that is under way covers."""
        self._turned = asyncio.Event()
        self._link: Link | None = None
        self.refusals = 0
        """How many times in a row the server has refused to be read."""
        self._may = asyncio.Event()
        self._may.set()

    def follow(self, stream: str, last: str, take: Take) -> None:
        """Read a stream behind an id. `cover` makes it take effect at once."""
        self._places[stream] = last
        self._wanted[stream] = take

    def leave(self, stream: str) -> None:
        """Read it no more."""
        self._wanted.pop(stream, None)
        self._places.pop(stream, None)

    def last(self, stream: str) -> str:
        """The id of the last entry that was read."""
        return self._places.get(stream, "0-0")

    def rewind(self, stream: str, end: int) -> None:
        """A stream ends here now: what's behind it is news, although it was read before."""
        if int(self.last(stream).partition("-")[0]) > end:
            self._places[stream] = f"{end}-0"

    def forget_all(self) -> None:
        """Read nothing any more."""
        self._wanted.clear()
        self._places.clear()

    async def cover(self, stream: str) -> None:
        """Return when the read that is under way has a stream, or will have it because there's none."""
        for _ in range(_TRIES):
            link = self._link
            if stream in self._covered or stream not in self._wanted or link is None or not link.alive:
                return
            self._turned.clear()
            with suppress(StoreUnavailable):
                await self._commands.ask(self._key, "CLIENT", "UNBLOCK", link.id)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TURN):
                    await self._turned.wait()

    def hold(self) -> None:
        """Read nothing until `go_on`, not even what's on its way: it's of a run of the server that has ended."""
        self._may.clear()
        self.reset()

    def go_on(self) -> None:
        """Read again."""
        self._may.set()

    def reset(self) -> None:
        """The connection may be wedged: make another one."""
        if self._link is not None:
            self._link.close()

    async def run(self) -> None:
        """Read, until canceled."""
        failures = 0
        while True:
            await self._may.wait()
            try:
                await self._routes.prepare()
                link = await self._routes.connect(self._routes.place(self._key), "reader", _ignore)
            except (OSError, LocalError) as failure:
                failures += 1
                if failures == 1:
                    _logger.warning("The store can't be read: %s", failure)
                await self._renew("LOST")
                await asyncio.sleep(_PAUSE * min(failures, _PAUSES))
                continue
            failures = 0
            if not self._may.is_set():
                link.close()
                continue
            self._link = link
            if self.connected is not None:
                self.connected()
            try:
                await self._read(link)
            except Lost as failure:
                _logger.info("Reading from the store is interrupted: %s", failure)
                await self._renew("LOST")
                await asyncio.sleep(_PAUSE)
            except Refused as failure:
                self.refusals += 1
                if self.refusals == 1:
                    _logger.warning("Redis refuses to be read, which is tried again: %s", failure)
                await self._renew(str(failure))
                await asyncio.sleep(_PAUSE * min(self.refusals, _PAUSES))
            finally:
                self._covered = frozenset()
                link.close()

    async def _renew(self, why: str) -> None:
        with suppress(OSError, LocalError):  # the next connection shows it
            await self._routes.renew(why)

    async def _read(self, link: Link) -> None:
        while True:
            streams = list(self._wanted)
            self._covered = frozenset(streams)
            self._turned.set()
            ids = [self._places[stream] for stream in streams]
            reply: Any = await link.ask("XREAD", "COUNT", _PAGE, "BLOCK", 0, "STREAMS", *streams, *ids)
            if self.refusals:
                _logger.warning("Redis lets itself be read again.")
            self.refusals = 0
            if not link.alive:  # what came is read again, unless it's of a server that is no more
                raise Lost("The connection was closed.")
            for name, entries in reply or ():
                self._take(name.decode(), entries)

    def _take(self, stream: str, entries: Sequence[tuple[bytes, Fields]]) -> None:
        for id, fields in entries:
            take = self._wanted.get(stream)
            if take is None:
                return
            self._places[stream] = at = id.decode()
            try:
                take(at, fields)
            except Exception:  # the connection is everybody's: one that fails must not end it for all
                _logger.exception("What was heard of the store could not be taken.")


def _ignore(link: Link) -> None:
    """The reader notices by itself that its connection broke."""
