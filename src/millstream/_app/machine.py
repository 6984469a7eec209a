"""The metrics of all workers of a machine: whichever of them is asked tells the sums.

Each worker leaves its figures with the parent, every second in which they changed, and when it is asked itself. Those
of a worker that has ended are folded into one record, so that what it counted stays counted.
"""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from millstream._protocol.errors import LocalError
from millstream._stores import open_store
from millstream._stores.base import Store
from millstream._telemetry import sums
from millstream._telemetry.metrics import Metrics

INTERVAL: Final = 1.0
_KEPT: Final = "metrics:"
_ENDED: Final = "ended-metrics"
_TTL: Final = 30 * 86400.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(sums.Ended).decode

logger = logging.getLogger("millstream")


class MachineMetrics:
    """The figures of this worker among those of the others."""

    __slots__ = ("_left", "_metrics", "_store")

    def __init__(self, metrics: Metrics, store: Store) -> None:
        """`store` is one that all workers of this machine share, and nobody else."""
        self._metrics = metrics
        self._store = store
        self._left = b""
        """What was left with the parent last."""

    async def render(self) -> bytes:
        """The sums over all workers, as Prometheus text; those of this worker where the parent does not answer."""
        try:
            await self.leave()
            return await self._sums()
        except (LocalError, OSError) as exc:
            logger.warning("The metrics are those of one worker, because the others can't be asked: %s", exc)
            return self._metrics.render()

    async def run(self) -> None:
        """Leave the figures with the parent whenever they changed, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.leave()
            except (LocalError, OSError):
                logger.debug("The parent didn't take the figures of this worker", exc_info=True)

    async def leave(self) -> None:
        """Leave the figures of now."""
        data = sums.dump(self._metrics)
        if data != self._left:
            await self._store.kv.put(_KEPT + self._store.workers.me, data, _TTL)
            self._left = data

    async def _sums(self) -> bytes:
        kv, workers = self._store.kv, self._store.workers
        keys = sorted(await kv.keys(_KEPT))
        alive: list[bytes] = []
        for key, data in zip(keys, await kv.get_many(keys), strict=True):
            if data is None:
                continue
            if await workers.alive(name := key.removeprefix(_KEPT)):
                alive.append(data)
            else:
                await self._fold(name, data)
        ended = await kv.get(_ENDED)
        return sums.render(alive, _decode(ended).dumps if ended is not None else ())

    async def _fold(self, name: str, data: bytes) -> None:
        """Put the figures of a worker that has ended to those of the others that have."""
        kv = self._store.kv
        while True:
            old = await kv.get(_ENDED)
            ended = sums.Ended([], []) if old is None else _decode(old)
            if await kv.compare_and_set(_ENDED, old, _encode(sums.add_ended(ended, name, data)), _TTL):
                break
        await kv.delete(_KEPT + name)


async def open_machine_metrics(metrics: Metrics, stack: AsyncExitStack) -> MachineMetrics:
    """The metrics of all workers, kept up to date for the life of the stack.

    Raises:
        LocalError: the parent doesn't answer.
    """
    # Not the server's store, which may be that of several machines.
    store = open_store("memory://")
    await store.open()
    stack.push_async_callback(store.close)
    machine = MachineMetrics(metrics, store)
    stack.push_async_callback(machine.leave)
    task = asyncio.create_task(machine.run())
    stack.callback(task.cancel)
    return machine
