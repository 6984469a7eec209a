"""The store in Redis: its parts, opened and closed together.

Two connections: one for all commands, one that waits for what others write. In a Cluster there's one for commands to
each server that has keys.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.redis.address import Address
from millstream._stores.redis.bus import RedisBus
from millstream._stores.redis.commands import Commands
from millstream._stores.redis.inbox import LOST, Outbox
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.link import Link
from millstream._stores.redis.log import CONTROL, FOLLOW_SECONDS, FOLLOWED, RedisLog
from millstream._stores.redis.members import RedisMembers
from millstream._stores.redis.rates import RedisRates
from millstream._stores.redis.reader import Fields, Reader
from millstream._stores.redis.recent import Recent
from millstream._stores.redis.repair import Repair
from millstream._stores.redis.routes import Place, routes_to
from millstream._stores.redis.standing import Standing
from millstream._stores.redis.values import RedisKeyValue
from millstream._stores.redis.workers import LEASE, RedisWorkers

ROOM: Final = 64 * 1024 * 1024
"""The bytes that the lossy values of one kind, or its indexes, may have."""
_GOODBYE: Final = 1.0
_PAUSE: Final = 0.5
_MOVED: Final = 1.0
"""Seconds between two questions whether another server has taken over, where there's somebody to ask."""


class RedisStore:
    """A store that other workers share."""

    def __init__(self, address: Address, *, lease: float = LEASE) -> None:
        # configuration
        self._address = address
        self._keys = keys = Keys(address.prefix)
        self._routes = routes = routes_to(address)
        # process
        self.shared = True
        self._standing = standing = Standing()
        self._commands = commands = Commands(routes)
        self._reader = reader = Reader(routes, commands, keys.generation)
        self._outbox = outbox = Outbox(commands, keys, standing)
        self.kv = RedisKeyValue(commands, keys, ROOM)
        self._recent = recent = Recent()
        self.log = RedisLog(commands, keys, standing, reader, outbox, recent, room=ROOM)
        self.bus = RedisBus(self.log, outbox)
        self.members = RedisMembers(commands, keys, standing, recent)
        self.rates = RedisRates(commands, keys, standing)
        self.workers = RedisWorkers(commands, keys, standing, reader, lease=lease)
        self.workers.mend = commands.mend = self._mend
        commands.connected = self._connected
        reader.connected = self.workers.hurry
        self._repair = Repair(commands, keys, standing, recent, lease)
        self._hub: Link | None = None
        """The connection to the server that has the hub's slot."""
        self._mending: asyncio.Task[None] | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._anew = self._lost = False
        self._quietly = True
        """It doesn't say that the members are there: everybody knows it."""
        self._tasks: list[asyncio.Task[None]] = []
        self._inbox = ""
        self._sequence = -1

    @property
    def epoch(self) -> str:
        return self._standing.epoch

    async def doubt(self) -> str:
        return self._commands.doubt

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._standing.epochs.add(changed)

    def time(self) -> float:
        return self._standing.time()

    async def open(self) -> None:
        commands = self._commands
        commands.open()
        try:
            await commands.link(self._keys.generation)
            await self.workers.enter()
            self._follow_inbox()
            self.bus.begin()
            await self.log.listening(CONTROL)
        except BaseException as failure:
            await self._end()
            if isinstance(failure, OSError):
                why = str(failure.strerror or failure).rstrip(".")
                raise LocalError(
                    f"The store at {self._address} can't be reached: {why}. Start it, or correct its URL."
                ) from None
            raise
        parts = (self._reader.run(), self.workers.run(), self._keep(), self._leave_replaced())
        self._tasks = [asyncio.create_task(each) for each in parts]

    async def close(self) -> None:
        if self._commands.closed:
            return
        tasks = [*self._tasks, *(task for task in (self._mending, self._restoring) if task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks, self._mending, self._restoring = [], None, None
        await self._outbox.close()
        with suppress(LocalError, OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self.workers.exit()
        await self._end()

    async def _end(self) -> None:
        await self._commands.close()
        self._reader.forget_all()
        self._recent.clear()
        for part in (self.log, self.bus, self.members, self.workers):
            part.end_all()
        self._standing.epochs.clear()

    def _connected(self, link: Link, place: Place) -> None:
        """There's a connection; the hub's server may be another one than before."""
        if place == self._routes.place(self._keys.generation):
            if self._hub is not None and self._hub.run != link.run:
                self._hub.close()  # it may be alive where another server took over: what it says is void
            self._hub = link
            self._standing.serve(link.run)

    def _follow_inbox(self) -> None:
        self._reader.leave(self._inbox)
        self._inbox, self._sequence = self._keys.inbox(self._standing.me, self._standing.run), -1
        self._reader.follow(self._inbox, "0-0", self._take)

    def _take(self, id: str, fields: Fields) -> None:
        """A message in the inbox, or the probe."""
        sequence = int(id.partition("-")[2])
        if sequence != self._sequence + 1:
            self._interrupt()
        self._sequence = sequence
        if fields[0] == b"p":
            self.workers.answered(fields)
            return
        topic = fields[1].decode()
        if topic == LOST:
            self._interrupt()
        elif topic.startswith(FOLLOWED):
            self.log.take(topic, fields[3])
        else:
            self.bus.take(topic[1:], fields[3])

    def _interrupt(self) -> None:
        self.log.interrupt()
        self.bus.interrupt()

    async def _mend(self, code: str) -> None:
        """The server lost its data, or took over from another one, or this worker lost its lease. Several may ask; it's
        done once.
        """
        if self._mending is not None and self._mending is asyncio.current_task():
            await self._mend_once(code)
            return
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend_once(code))
        await asyncio.shield(self._mending)

    async def _mend_once(self, code: str) -> None:
        standing = self._standing
        before = standing.epoch
        if code != "LAPSED":
            standing.settled = ""
            self._reader.hold()
        if code == "SUCCESSOR":
            run, epoch = await self._repair.run()
            if epoch:
                await self.log.look_again(lost=epoch != before)
                self.workers.adopt(epoch)
                standing.settled = run
                self._reader.go_on()
                if before:
                    self._restore_soon(lost=epoch != before, quietly=True)
                return
        if code != "LAPSED":
            self._recent.clear()
        await self.workers.come_again()
        if code != "LAPSED":
            await self.log.look_again(lost=False)
        self._restore_soon(lost=code != "LAPSED", quietly=False)
        self._reader.go_on()

    def _restore_soon(self, *, lost: bool, quietly: bool) -> None:
        self._follow_inbox()
        self._lost |= lost
        self._quietly &= quietly
        self._anew = True
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.create_task(self._restore())

    async def _restore(self) -> None:
        """What others know of this worker is gone, or may be: they learn it again. Then whoever listens hears it."""
        while self._anew:
            self._anew = False
            try:
                await self._reader.cover(self._inbox)
                await self.log.note_all()
                await self.members.vouch_again(quietly=self._quietly)
            except LocalError:
                self._anew = True
                await asyncio.sleep(_PAUSE)
        self.log.interrupt(hub=self._lost)
        self.bus.interrupt()
        self._lost, self._quietly = False, True

    async def _leave_replaced(self) -> None:
        """Go to the server that has taken over though the old one is well: it has to be brought what that one gets."""
        while True:
            await asyncio.sleep(_MOVED)
            if await self._routes.moved() and self._hub is not None:
                self._hub.close()
                self.workers.hurry()  # the others wait there, also for one that has nothing to ask

    async def _keep(self) -> None:
        """What's noted in the store for this worker lives on."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS / 2)
            with suppress(LocalError):
                await self.log.note_all()
                await self.members.keep()
