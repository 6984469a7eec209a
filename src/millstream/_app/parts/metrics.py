"""`/metrics`: the figures of this process, or of all workers on this machine.

Each worker stores its figures with the parent process every second if they changed, and before rendering. The figures
of a worker that exits are added to a common record, so that counters never decrease.
"""

import asyncio
import logging
from functools import partial

import msgspec

from millstream._app.parts import OwnPart
from millstream._parts import WATCH, Host, Route
from millstream._protocol.errors import LocalError
from millstream._stores import open_store
from millstream._stores.base import Store
from millstream._stores.parent import parent_address
from millstream._telemetry import exposition
from millstream._telemetry.exposition import EndedProcesses, MetricsEndpoint
from millstream._telemetry.metrics import Metrics

INTERVAL = 1.0
_KEPT = "metrics:"
_ENDED = "ended-metrics"
_TTL = 30 * 86400.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(EndedProcesses).decode

logger = logging.getLogger("millstream")


class MachineMetrics:
    """The figures of this worker, combined with the others'."""

    def __init__(self, metrics: Metrics, store: Store) -> None:
        """Create it. `store` is shared by all workers of this machine, and by no other process."""
        self._metrics = metrics
        self._store = store
        self._left = b""
        """The figures stored last."""

    async def render(self) -> bytes:
        """Return the sums over all workers as Prometheus text, or this worker's figures if the parent is
        unavailable.
        """
        try:
            await self.leave()
            return await self._sums()
        except (LocalError, OSError) as exc:
            logger.warning("The metrics are those of one worker, because the others can't be queried: %s", exc)
            return exposition.render(self._metrics)

    async def run(self) -> None:
        """Store the figures whenever they change, until canceled."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.leave()
            except (LocalError, OSError):
                logger.debug("The parent didn't accept the figures of this worker", exc_info=True)

    async def leave(self) -> None:
        """Store the current figures with the parent."""
        data = exposition.dump(self._metrics)
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
        return exposition.render_sums(alive, _decode(ended).readings if ended is not None else ())

    async def _fold(self, name: str, data: bytes) -> None:
        """Add the figures of an exited worker to the common record."""
        kv = self._store.kv
        while True:
            old = await kv.get(_ENDED)
            ended = EndedProcesses([], []) if old is None else _decode(old)
            if await kv.compare_and_set(_ENDED, old, _encode(ended.add(name, data)), _TTL):
                break
        await kv.delete(_KEPT + name)


class MetricsPart(OwnPart):
    """Opens the metrics registry for the parts after it, and serves it."""

    name: str = "metrics"

    async def open(self, host: Host) -> None:
        """Create the registry.

        Raises:
            LocalError: there are several workers, and their parent isn't responding.
        """
        health = host.store_health
        host.metrics = metrics = Metrics()
        metrics.read(
            "gauge", "hub_backend_up", "The store responds.", lambda: {(health.kind,): int(health.up)}, ("kind",),
            merge="min",
        )  # fmt: skip
        if parent_address() is None:

            async def render() -> bytes:
                return exposition.render(metrics)
        else:
            # Not the server's store, which several machines may share.
            store = open_store("memory://")
            await store.open()
            host.stack.push_async_callback(store.close)
            machine = MachineMetrics(metrics, store)
            host.stack.push_async_callback(machine.leave)
            host.run(machine.run())
            render = machine.render
        route = Route({"GET": MetricsEndpoint(render, health.look).get}, scope=WATCH, private=True)
        host.on_http(partial(host.routes.add, "/metrics", route))
