"""The store in Redis.

It uses two connections: one for commands, and one that receives what other workers append. In a Cluster, there is one
command connection per server with keys. Redis replicates asynchronously, so a new or restarted primary may lack the
newest entries. The scripts detect this by the replication id and begin a new epoch.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import chain

from millstream._protocol.errors import LocalError
from millstream._stores.health import LogOnce, run_on
from millstream._stores.rates import Charge, ChargeResult, ChargeResults, ConcurrencySlot, Quota, RateCharge
from millstream._stores.redis.address import RedisAddress
from millstream._stores.redis.client import ALLOW, Argument, RedisClient
from millstream._stores.redis.keys import RedisKeys, script
from millstream._stores.redis.log import PushReader, RedisLog, RedisMap, RedisState
from millstream._stores.tail import Watchers
from millstream._tasks import cancel_all

LEASE = 6.0
ROOM = 64 * 1024 * 1024
"""Maximum bytes of the lossy values of one kind, or of its indexes."""
RENEW = 2.5
"""Seconds between checks of the epoch and the clock of Redis."""
_PAUSE = 0.5
_MICRO = 1e6

_logger = logging.getLogger("millstream.stores")


class RedisBackend:
    """`Backend` in Redis."""

    shared = True
    persistent = True

    def __init__(self, address: RedisAddress, *, lease: float = LEASE) -> None:
        # configuration
        self.lease = lease
        self._keys = keys = RedisKeys(address.prefix)
        # process
        self._state = state = RedisState()
        self._client = client = RedisClient(address, keys.generation)
        self._pushes = pushes = PushReader(client, keys.generation, keys.mark_channel(state.id))
        self.kv = RedisMap(client, keys, ROOM)
        self.log = RedisLog(client, keys, state, pushes, room=ROOM)
        state.renewed = self._on_new_run
        self._epochs = Watchers()
        self._hurries = asyncio.Event()
        client.reconnected = self._hurries.set
        self._new_run = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def epoch(self) -> str:
        return self._state.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._epochs.watch(changed)

    def time(self) -> float:
        return self._state.time()

    async def degraded_reason(self) -> str:
        return self._client.degraded_reason

    async def bind(self, worker: str) -> None:
        """Do nothing, because Redis doesn't report ended connections."""

    async def open(self) -> None:
        await self._client.open()
        try:
            await self._check()
            await self._renew()
        except BaseException:
            await self._client.close()
            raise
        outage = LogOnce(_logger, "The new epoch can't be applied; retrying", "The new epoch has been applied.")
        restoring = run_on(self._new_run, self._restore, outage, pause=_PAUSE)
        self._tasks = [asyncio.create_task(each) for each in (self._pushes.run(), self._run(), restoring)]

    async def close(self) -> None:
        if self._client.closed:
            return
        await cancel_all(*self._tasks)
        self._tasks = []
        await self._client.close()
        self._pushes.forget_all()
        self.log.remove_listeners()
        self._epochs.clear()

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> ChargeResults:
        if not charges:
            return ChargeResults([])
        described = [_arguments(charge) for charge in charges]
        names = [self._keys.rate(each[0], charge.key) for each, charge in zip(described, charges, strict=True)]
        dead = dead if any(isinstance(charge, ConcurrencySlot) for charge in charges) else ()
        args: list[Argument] = [worker, len(dead), *dead, *chain.from_iterable(described)]
        # Don't retry after a broken connection: that could charge twice.
        found = await self._client.run(script("charge"), names, args, again=False)
        triples = zip(found[::3], found[1::3], found[2::3], strict=True)
        return ChargeResults(
            [ChargeResult(int(wait) / _MICRO, float(left), float(amount)) for wait, left, amount in triples]
        )

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        names = [self._keys.rate("s", slot.key) for slot in slots]
        if not names:
            return
        await self._client.run(script("release"), names, [f"{worker} {slot.holder}" for slot in slots])

    async def _check(self) -> None:
        """Check at startup that all commands are permitted, so the first event doesn't fail.

        Raises:
            LocalError: A command isn't permitted.
        """
        missing = await self._client.run(script("may"), [self._keys.generation], [])
        if missing:
            names = ", ".join(each.decode() for each in missing)
            raise LocalError(
                f"Redis doesn't permit the user in the store's URL to run {names} on Millstream's keys. {ALLOW}"
            )

    async def _run(self) -> None:
        """Check epoch and time periodically and after failures. Leases report if the store doesn't respond."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW):
                    await self._hurries.wait()
            self._hurries.clear()
            with suppress(LocalError):
                await self._renew()

    async def _renew(self) -> None:
        state, keys = self._state, self._keys
        begun = time.monotonic()
        now, epoch = await self._client.run(script("renew"), [keys.generation, keys.places(state.id)], [state.epoch])
        state.set_time(int(now), begun)
        state.adopt(epoch.decode())

    def _on_new_run(self) -> None:
        _logger.warning("Redis may have lost data, because the primary or its run id changed. Readers get a gap.")
        self._new_run.set()

    async def _restore(self) -> None:
        """Apply the new epoch, then notify all subscribers."""
        self._pushes.restart()
        await self._pushes.wait_until_followed()
        self.log.interrupt()
        self._epochs.notify_all()


def _arguments(charge: Charge) -> tuple[str, int, int, str | int, str]:
    """Return a charge as five arguments, the first of which is its kind."""
    if isinstance(charge, RateCharge):
        return "p", charge.count, int(charge.seconds * _MICRO), repr(charge.cost), repr(charge.most)
    if isinstance(charge, Quota):
        return "q", charge.count, int(charge.until * _MICRO), repr(charge.cost), ""
    return "s", charge.count, 0, 1, charge.holder
