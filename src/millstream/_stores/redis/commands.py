"""Asking Redis: one connection to each server that is needed, whoever asks, and what to do when it breaks.

What may be asked twice is asked again for as long as `PATIENCE`. Everything else is only asked again when it's certain
that it wasn't done. A refusal that waiting won't change shows at once, under its own name.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from typing import Any, Final

from millstream._protocol.errors import LocalError
from millstream._stores.base import Sealed, ShareFull, StoreFull, StoreUnavailable
from millstream._stores.redis.link import ALLOW, Argument, Link, Lost, Refused, evicts, read_info
from millstream._stores.redis.routes import COMMANDS, Place, Routes
from millstream._stores.redis.scripts import Script

PATIENCE: Final = 5.0
"""Seconds that a caller waits for a store that is away."""
SILENCE: Final = 4.0
"""Seconds without a reply after which a connection counts as broken."""
LOOK: Final = 60.0
"""Seconds between two looks at what a server says of itself: its settings may change while it runs."""
_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)

_AGAIN: Final = frozenset(
    {"LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "READONLY", "UNBLOCKED", "MOVED", "ASK"}
)
"""The server didn't do it, and may soon."""
_MEND: Final = frozenset({"EMPTY", "SUCCESSOR"})
"""The server has no data, or not yet all that its predecessor had."""
_FORBIDDEN: Final = re.compile("unknown (redis )?command|can't run this command", re.IGNORECASE)
"""The server doesn't have a command, or a script may not use it."""
_MOVED: Final = frozenset({"READONLY", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN"})
"""Another server may be the right one now."""

Asked = tuple[Sequence[str], Sequence[Argument]]

_logger = logging.getLogger("millstream.stores")


class _Question:
    """A command, for as long as it's tried."""

    __slots__ = ("again", "at", "begun", "command", "key", "renew", "text", "whole")

    def __init__(self, key: str, command: tuple[Argument, ...], again: bool, text: bytes = b"") -> None:
        self.key = key
        self.command = command
        self.again = again
        self.text = text
        """Of the script."""
        self.begun = asyncio.get_running_loop().time()
        self.renew: Callable[[], tuple[Argument, ...]] | None = None
        self.at: Place | None = None
        """The only server where it's to be asked, and only once: the key is being moved there."""
        self.whole = False
        """The server doesn't know the script: send it."""

    def put(self) -> tuple[Argument, ...]:
        """What to send."""
        command = self.command if self.renew is None else self.renew()
        return ("EVAL", self.text, *command[2:]) if self.whole else command


class Commands:
    """The way to Redis."""

    def __init__(self, routes: Routes) -> None:
        # configuration
        self._routes = routes
        self.mend: Callable[[str], Awaitable[None]] | None = None
        """Called when a script refuses because the server lost its data (``EMPTY``) or took over from another one
        (``SUCCESSOR``).
        """
        self.connected: Callable[[Link, Place], None] | None = None
        """Called with each new connection, before anything is asked on it. Also with one that `link` gives: keys may
        have moved to a server that was connected before.
        """
        # process
        self._links: dict[Place, Link] = {}
        self._connecting: dict[Place, asyncio.Task[Link]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._doubts: dict[Place, str] = {}
        """Why servers that answer may lose what they're given."""
        self.closed = True

    def open(self) -> None:
        """From now on connections are made when they're needed."""
        self.closed = False
        self._watch = asyncio.create_task(self._watch_links())

    async def close(self) -> None:
        """End all connections."""
        self.closed = True
        tasks: list[asyncio.Task[Any]] = list(self._connecting.values())
        if self._watch is not None:
            tasks.append(self._watch)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watch = None
        self._connecting.clear()
        for link in list(self._links.values()):
            link.close()
        self._links.clear()

    @property
    def doubt(self) -> str:
        """Why a server that answers may lose what it's given; empty while none says so."""
        return next(iter(self._doubts.values()), "")

    async def run(self, script: Script, asked: "Asked | Callable[[], Asked]", *, again: bool = True) -> Any:
        """Run a script.

        Args:
            script: what to run.
            asked: its keys, all in one slot, and its arguments; a function gives them again after `mend`.
            again: it may run twice, because it recognizes what it did or changes nothing.

        Raises:
            StoreUnavailable: no answer came in time.
            StoreFull: there's no room.
            Sealed: the stream has ended.
        """
        if callable(asked):
            given = asked

            def renew() -> tuple[Argument, ...]:
                keys, args = given()
                return ("EVALSHA", script.digest, len(keys), *keys, *args)

            command = renew()
            question = _Question(str(command[3]), command, again, script.text)
            question.renew = renew
        else:
            keys, args = asked
            question = _Question(keys[0], ("EVALSHA", script.digest, len(keys), *keys, *args), again, script.text)
        return await self._ask(question)

    async def ask(self, key: str, *command: Argument, again: bool = True) -> Any:
        """Ask with a plain command. Arguments and errors as for `run`."""
        return await self._ask(_Question(key, command, again))

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of several keys: in one round trip for each server."""
        return list(await asyncio.gather(*(self.ask(key, "GET", key) for key in keys)))

    async def scan(self, pattern: str, page: int) -> list[str]:
        """The keys of all servers that match a pattern."""
        now, pauses = asyncio.get_running_loop().time, chain(_PAUSES, repeat(_PAUSES[-1]))
        deadline = now() + PATIENCE
        while not self.closed and now() < deadline:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._routes.prepare()
                    found = [await _scan(await self._link_at(each), pattern, page) for each in self._routes.places()]
                    return list(chain.from_iterable(found))
            except OSError:  # from its beginning: another server may have the keys now
                await asyncio.sleep(next(pauses))
                with suppress(OSError, LocalError):  # the next attempt shows it
                    await self._routes.renew("LOST")
            except (LocalError, Refused) as failure:
                raise _unavailable(str(failure)) from None
        raise _unavailable("its keys can't be listed")

    async def _ask(self, asked: "_Question") -> Any:
        link = self._links.get(self._routes.place(asked.key))
        if link is None or not link.alive:
            return await self._insist(asked, None)
        try:
            return await link.ask(*asked.command)
        except Lost as failure:
            if not asked.again:
                raise _unavailable("the connection broke") from None
            return await self._insist(asked, failure)
        except Refused as failure:
            return await self._insist(asked, failure)

    async def _insist(self, asked: "_Question", failure: Exception | None) -> Any:
        """Ask until it's answered, or the patience ends. To those who ask, a server that can't be used is one that is
        away.
        """
        try:
            return await self._persist(asked, failure)
        except LocalError as wrong:
            if type(wrong) is not LocalError:
                raise
            raise StoreUnavailable(str(wrong)) from None

    async def _persist(self, asked: "_Question", failure: Exception | None) -> Any:
        deadline = asked.begun + PATIENCE
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while not self.closed:
            try:
                async with asyncio.timeout_at(deadline):
                    if failure is not None:
                        await self._prepare(asked, failure, pauses)
                    link = await (self.link(asked.key) if asked.at is None else self._link_at(asked.at))
            except TimeoutError:
                break
            except OSError as broken:
                failure = broken
                continue
            try:
                if asked.at is not None:
                    asked.at = None
                    link.ask("ASKING")  # counts for the next command on this connection
                # Put again each time: it says which run of the server it's meant for.
                return await link.ask(*asked.put())
            except Lost as broken:
                if not asked.again:
                    raise _unavailable("the connection broke") from None
                failure = broken
            except Refused as refused:
                failure = refused
        raise _unavailable(str(failure or "it doesn't answer"))

    async def _prepare(self, asked: "_Question", failure: Exception, pauses: Iterator[float]) -> None:
        """After a failure: wait until it makes sense to ask again, and with what."""
        if not isinstance(failure, Refused):
            await asyncio.sleep(next(pauses))
            await self._routes.renew("LOST")
            return
        code = failure.code
        if code == "NOSCRIPT":
            asked.whole = True
        elif code in _MEND and self.mend is not None:
            await self.mend(code)
        elif code in _AGAIN:
            if code in _MOVED:
                asked.at = await self._reroute(asked.key, failure)
            if code not in ("MOVED", "ASK"):
                await asyncio.sleep(next(pauses))
        else:
            raise _final(failure) from None

    async def _reroute(self, key: str, failure: Refused) -> Place | None:
        if failure.code == "READONLY":  # it was the primary, and no longer is
            link = self._links.get(self._routes.place(key))
            if link is not None:
                link.close()
        return await self._routes.renew(str(failure))

    async def link(self, key: str) -> Link:
        """A connection to the server that has a key.

        Raises:
            OSError: there's none at the moment.
            LocalError: the server can't be used.
        """
        await self._routes.prepare()
        place = self._routes.place(key)
        link = await self._link_at(place)
        if self.connected is not None and link.alive:
            self.connected(link, place)
        return link

    async def _link_at(self, place: Place) -> Link:
        link = self._links.get(place)
        if link is not None and link.alive:
            return link
        task = self._connecting.get(place)
        if task is None:
            task = self._connecting[place] = asyncio.create_task(self._connect(place))
            task.add_done_callback(lambda done: self._connected_or_not(place, done))
        return await asyncio.shield(task)

    async def _connect(self, place: Place) -> Link:
        link = await self._routes.connect(place, COMMANDS, self._broke)
        self._links[place] = link
        if self.connected is not None:
            self.connected(link, place)
        return link

    def _connected_or_not(self, place: Place, task: asyncio.Task[Link]) -> None:
        self._connecting.pop(place, None)
        if not task.cancelled():
            task.exception()  # those who wait get it; perhaps nobody does any more

    def _broke(self, link: Link) -> None:
        for place, each in list(self._links.items()):
            if each is link:
                del self._links[place]
                self._doubts.pop(place, None)  # the next connection looks for itself

    async def _watch_links(self) -> None:
        """Break connections that keep silent, so that nobody waits for longer than the patience."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(SILENCE / 8)
            if loop.time() - looked >= LOOK:
                looked = loop.time()
                self.look()
            for link in list(self._links.values()):
                if link.waiting and loop.time() - link.heard > SILENCE:
                    _logger.warning("Redis keeps silent for %.0f s: connecting again.", SILENCE)
                    link.close()

    def look(self) -> None:
        """Ask each server that is connected whether it has begun to drop what it's given."""
        for place, link in self._links.items():
            link.ask("INFO", "memory").add_done_callback(partial(self._looked, place))

    def _looked(self, place: Place, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or reply.exception() is not None:
            return  # it may be refused; the connection says what else is wrong
        problem, before = evicts(read_info(reply.result()), "Redis"), self._doubts.pop(place, "")
        if problem:
            self._doubts[place] = problem
        if problem and not before:
            _logger.error("%s", problem)
        elif before and not problem:
            _logger.warning("Redis doesn't evict data anymore.")


async def _scan(link: Link, pattern: str, page: int) -> list[str]:
    """The keys of one server that match a pattern."""
    found: list[str] = []
    cursor = None
    while cursor != b"0":
        cursor, names = await link.ask("SCAN", cursor or b"0", "MATCH", pattern, "COUNT", page)
        found += [name.decode("utf-8", "surrogateescape") for name in names]
    return found


def _unavailable(why: str) -> StoreUnavailable:
    return StoreUnavailable(f"The store didn't answer in time: {why}")


def _final(failure: Refused) -> LocalError:
    """A refusal that stays one, under its name."""
    code, text = failure.code, str(failure)
    if code == "SEALED":
        return Sealed("The stream has ended.")
    if code == "OOM":
        return StoreFull("Redis has used up its maxmemory and takes nothing further. Raise it, or delete other data.")
    if code == "SHAREFULL":
        return ShareFull("This share of the store holds as many bytes as it may.")
    if code == "TOOLARGE":
        return StoreFull("The value is larger than the room of its kind.")
    if code == "NOPERM" or _FORBIDDEN.search(text):
        return LocalError(
            f"Redis doesn't allow the user of the store's URL what Millstream needs: {text[:100]}. {ALLOW}"
        )
    return StoreUnavailable(f"Redis refused: {text[:200]}")
