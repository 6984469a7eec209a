"""The store on NATS JetStream."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from millstream._protocol.errors import LocalError
from millstream._stores.health import LogOnce
from millstream._stores.nats.address import NatsAddress
from millstream._stores.nats.limits import NatsLimits
from millstream._stores.nats.link import JetStreamError, NatsLink
from millstream._stores.nats.log import NatsLog
from millstream._stores.nats.values import NatsMap
from millstream._stores.rates import Charge, ChargeResults, Seat
from millstream._stores.store import BackendStore
from millstream._tasks import cancel_all

LEASE = 15.0
"""Lease time in seconds, longer than a leader election takes."""
_SWEEP_SECONDS = 10.0

_logger = logging.getLogger("millstream.stores")


class NatsBackend:
    """A `Backend` on JetStream. With three replicas, acknowledged data survive the loss of a node."""

    shared = True
    persistent = False

    def __init__(self, address: NatsAddress, *, lease: float = LEASE) -> None:
        self.lease = lease
        self._link = NatsLink(address)
        self.log = NatsLog(self._link)
        self.kv = NatsMap(self._link)
        self._limits = NatsLimits(self._link, self.kv)
        self._sweep_task: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> str:
        return self._link.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        return self._link.epochs.add(changed)

    def time(self) -> float:
        return self._link.time()

    async def degraded_reason(self) -> str:
        """Return how many replicas are missing, as text."""
        if self._link.address.replicas == 1:
            return ""
        try:
            info = await self._link.info(f"{self._link.address.namespace}-meta")
        except (LocalError, JetStreamError) as exc:
            return f"NATS doesn't answer: {exc}"
        cluster: dict[str, Any] = info.get("cluster") or {}
        replicas: list[dict[str, Any]] = cluster.get("replicas") or []
        current = sum(bool(each.get("current")) and not each.get("offline") for each in replicas) + 1
        return (
            "" if current >= self._link.address.replicas else f"{current} of {len(replicas) + 1} replicas are current"
        )

    async def open(self) -> None:
        await self._link.open()
        self._sweep_task = asyncio.create_task(self._sweep())

    async def close(self) -> None:
        task, self._sweep_task = self._sweep_task, None
        await cancel_all(task)
        self.log.close()
        self.kv.close()
        await self._link.close()

    async def bind(self, worker: str) -> None:
        """Do nothing, because NATS doesn't report ended connections."""

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> ChargeResults:
        return await self._limits.charge(worker, charges, dead)

    async def release(self, worker: str, seats: Sequence[Seat]) -> None:
        await self._limits.release(worker, seats)

    async def _sweep(self) -> None:
        trouble = LogOnce(_logger, "Expired streams can't be dropped; retrying", "Expired streams are dropped again.")
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            with trouble:
                try:
                    await self.log.sweep()
                    await self._limits.sweep()
                except JetStreamError as exc:
                    raise LocalError(f"NATS rejected a request: {exc}.") from exc


class NatsStore(BackendStore):
    """The store at an address. ``NatsStore(parse_address("nats://localhost?replicas=3"))``"""

    def __init__(self, address: NatsAddress, *, lease: float = LEASE) -> None:
        super().__init__(NatsBackend(address, lease=lease))
