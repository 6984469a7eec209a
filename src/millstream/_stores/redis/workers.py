"""`Workers`: leases by Redis' clock, and the heartbeat that renews our own.

One command every few seconds does it all: it renews the lease, measures the store's time, brings who is there and which
generation the data are, and sends a probe that has to come back through the connection that reads. Without it that
connection is wedged, and made again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Final

from millstream._protocol.errors import LocalError
from millstream._stores.memory.topics import Watchers
from millstream._stores.redis.commands import Asked, Commands
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.link import ALLOW, Argument
from millstream._stores.redis.reader import Fields, Reader
from millstream._stores.redis.scripts import script
from millstream._stores.redis.standing import Standing

LEASE: Final = 6.0
BEAT: Final = 0.4
"""The part of a lease after which it's renewed: one renewal may get lost."""
_AGAIN: Final = 0.5
"""Seconds after which a renewal that failed is tried again: others may wait for this worker at a new server."""
_UNANSWERED: Final = 2
_LATER: Final = 0.05
"""Seconds after the end of a lease at which others look who is gone."""

_logger = logging.getLogger("millstream.stores")


class RedisWorkers:
    """Who shares the store."""

    def __init__(
        self,
        commands: Commands,
        keys: Keys,
        standing: Standing,
        reader: Reader,
        *,
        lease: float = LEASE,
    ) -> None:
        # configuration
        self.lease = lease
        self._commands = commands
        self._keys = keys
        self._standing = standing
        self._reader = reader
        self.mend: Callable[[str], Awaitable[None]] | None = None
        """Called when the data are of another run of the server than the one that answers."""
        # process
        self._watchers = Watchers()
        self._living: frozenset[str] = frozenset()
        self._unanswered = 0
        self._failing = False
        """The last beat failed, and the log says so."""
        self._hurry = asyncio.Event()
        self._first_end = inf
        """Seconds until the first lease of all ends, as of the last beat. Who lives renews its own long before."""

    @property
    def me(self) -> str:
        return self._standing.me

    async def alive(self, worker: str) -> bool:
        if worker == self.me:
            return True
        leases = self._keys.leases
        until = await self._commands.ask(leases, "ZSCORE", leases, worker)
        lives = until is not None and float(until) / 1e6 > self._standing.time()
        if lives:  # whoever was told so will be told when it's gone, also before a beat has seen it
            self._living |= {worker}
        return lives

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._watchers.add(changed)

    def end_all(self) -> None:
        """Nobody watches any more."""
        self._watchers.clear()

    async def enter(self) -> None:
        """Take a name and a lease.

        Raises:
            LocalError: the store can't be used.
            OSError: it isn't there.
        """
        standing, keys = self._standing, self._keys
        await self._commands.link(keys.generation)
        if not standing.me:
            await self._check()
        standing.rename()
        begun = time.monotonic()

        def asked() -> Asked:
            args: list[Argument] = [
                standing.me,
                int(self.lease * 1e6),
                secrets.token_hex(2),
                standing.run,
                standing.epoch,
            ]
            return [keys.generation, keys.leases], args

        now, epoch, run, settled = await self._commands.run(script("enter"), asked)
        standing.set_time(int(now), begun)
        self._living |= {standing.me}
        self._unanswered = 0
        if settled:
            standing.turn(run.decode())
            self.adopt(epoch.decode())
            standing.settled = standing.run
        else:
            await self._mend("SUCCESSOR")

    async def _check(self) -> None:
        """What's missing shows at the start, rather than with the first event.

        Raises:
            LocalError: a command is forbidden.
        """
        missing = await self._commands.run(script("may"), ([self._keys.generation], []))
        if missing:
            names = ", ".join(each.decode() for each in missing)
            raise LocalError(
                f"Redis doesn't let the user of the store's URL use {names} on keys of Millstream, which needs them."
                f" {ALLOW}"
            )

    async def exit(self) -> None:
        """Give the lease back."""
        keys, me = self._keys, self.me
        names = [keys.leases, keys.inbox(me, self._standing.run), keys.places(me), keys.vouched(me)]
        await self._commands.run(script("exit"), (names, [me]))

    async def run(self) -> None:
        """Beat, until canceled."""
        while True:
            pause = min(self.lease * BEAT, _AGAIN if self._failing else inf, self._first_end + _LATER)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
            self._hurry.clear()  # who hurries from here on wants another beat than this one
            self._first_end = inf
            try:
                await self.beat()
            except (LocalError, OSError) as failure:
                if not self._failing:
                    why = (isinstance(failure, OSError) and failure.strerror) or failure
                    _logger.warning("The lease of this worker can't be renewed, which is tried again: %s", why)
                self._failing = True
                self._unanswered = 0  # the probe may not have been sent
            else:
                if self._failing:
                    _logger.warning("The lease of this worker is renewed again.")
                self._failing = False

    def hurry(self) -> None:
        """Beat now: the server may be another one than before."""
        self._hurry.set()

    async def beat(self) -> None:
        """Renew the lease."""
        standing, keys = self._standing, self._keys
        me = standing.me
        if self._unanswered >= _UNANSWERED and not self._reader.refusals:
            _logger.warning("The connection that reads the store is wedged: connecting again.")
            self._unanswered = 0
            self._reader.reset()
        self._unanswered += 1
        await self._commands.link(keys.generation)
        begun = time.monotonic()

        def asked() -> Asked:
            inbox = keys.inbox(me, standing.run)
            head, _, tail = self._reader.last(inbox).partition("-")
            names = [keys.generation, keys.leases, inbox, keys.places(me), keys.vouched(me)]
            return names, [me, int(self.lease * 1e6), f"{head}-{int(tail) + 1}", standing.run]

        now, epoch, run, living, first_end = await self._commands.run(script("beat"), asked)
        standing.set_time(int(now), begun)
        self._first_end = (int(first_end) - int(now)) / 1e6 if first_end else inf
        if not epoch:
            await self._mend("EMPTY")
            return
        if run.decode() != standing.run or standing.settled != standing.run:
            await self._mend("SUCCESSOR")
            return
        self.adopt(epoch.decode())
        if me not in {each.decode() for each in living} and standing.me == me:
            await self._mend("LAPSED")
        there = frozenset(each.decode() for each in living)
        if there != self._living:
            self._living = there | {standing.me}
            self._watchers.tell()

    async def come_again(self) -> None:
        """Be another worker, because the lease was over."""
        _logger.warning("The lease of this worker was over, or the store lost it: it goes on under a new name.")
        old = self.me
        await self.enter()
        self._living = frozenset({self.me, *self._living} - {old})
        self._watchers.tell()

    def answered(self, _fields: Fields) -> None:
        """The probe came back."""
        self._unanswered = 0

    async def _mend(self, code: str) -> None:
        if self.mend is not None:
            await self.mend(code)

    def adopt(self, epoch: str) -> None:
        """The data are of this generation."""
        standing = self._standing
        before, standing.epoch = standing.epoch, epoch
        if before and before != epoch:
            _logger.warning("The store lost data: its epoch is now %s.", epoch)
            standing.epochs.tell()
