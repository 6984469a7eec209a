"""The store on NATS JetStream.

Paces and slots are in-memory messages that change in one atomic batch. Quotas are values of the durable map.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Collection, Sequence
from itertools import count
from typing import Any

import msgspec
from msgspec import Struct, field

from millstream._protocol.errors import LocalError
from millstream._stores.health import LogOnce, run_on
from millstream._stores.nats.address import NatsAddress
from millstream._stores.nats.link import WRONG_LAST, JetStreamError, NatsLink, token
from millstream._stores.nats.log import NatsLog
from millstream._stores.nats.values import NatsMap
from millstream._stores.rates import (
    Charge,
    ChargeResult,
    ChargeResults,
    ConcurrencySlot,
    Quota,
    RateCharge,
    check_pace,
    check_quota,
    check_slot,
    quota_key,
    refuse_all,
)
from millstream._stores.store import BackendStore
from millstream._stores.workers import read_again
from millstream._tasks import cancel_all

_ROOM = 64 * 1024 * 1024
_SLOT_SECONDS = 86400
_LOCKS = 64
_PAUSE = 0.002

SlotHolders = list[tuple[str, str]]
"""The (worker, holder) pair of each slot."""
_decode_slots = msgspec.msgpack.Decoder(SlotHolders).decode
_encode = msgspec.msgpack.Encoder().encode
_decode_time = msgspec.msgpack.Decoder(float).decode


class NatsLimits(Struct, eq=False):
    """`Backend.charge` and `Backend.release`."""

    _link: NatsLink
    _values: NatsMap
    _locks: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(_LOCKS)])
    _forgot: float | None = None
    """Time at which paces were last dropped to free space."""

    @property
    def _stream(self) -> str:
        return f"{self._link.address.namespace}-rates"

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> ChargeResults:
        """See `Backend.charge`."""
        if not charges:
            return ChargeResults([])
        async with self._locks[hash(charges[0].key) % _LOCKS]:
            while True:
                taken = await self._try(worker, charges, dead)
                if taken is not None:
                    forgot = None if self._forgot is None else self._link.time() - self._forgot
                    return ChargeResults(taken, forgot)
                await asyncio.sleep(_PAUSE * (1 + secrets.randbelow(8)))

    async def _try(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> list[ChargeResult] | None:
        """Try to charge once. Return None if another worker changed a limit first."""
        now = self._link.time()
        read = await asyncio.gather(*map(self._read, charges))
        found: list[ChargeResult] = []
        written: list[tuple[str, bytes, int, float]] = []
        """Subjects, values to write, expected sequences, and lifetimes in seconds."""
        quotas: list[tuple[Quota, bytes | None]] = []
        for charge, (seq, data) in zip(charges, read, strict=True):
            if isinstance(charge, RateCharge):
                result, until = check_pace(charge, now if data is None else _decode_time(data), now)
                written.append((self._subject(charge), _encode(until), seq, until - now))
            elif isinstance(charge, Quota):
                result = check_quota(charge, float(data or 0), now)
                if charge.until > now:
                    quotas.append((charge, data))
            else:
                held = [] if data is None else [each for each in _decode_slots(data) if each[0] not in dead]
                result = check_slot(charge, held, worker)
                if result.amount:
                    held.append((worker, charge.holder))
                    written.append((self._subject(charge), _encode(held), seq, _SLOT_SECONDS))
            found.append(result)
        refused = refuse_all(found)
        if refused is not None:
            return refused
        return found if await self._commit(written, quotas, now) else None

    async def _commit(
        self,
        written: Sequence[tuple[str, bytes, int, float]],
        quotas: Sequence[tuple[Quota, bytes | None]],
        now: float,
    ) -> bool:
        done: list[Quota] = []
        for quota, old in quotas:
            value = b"%.6f" % (float(old or 0) + quota.cost)
            if not await self._values.compare_and_set(quota_key(quota), old, value, quota.until - now, lossy=True):
                break
            done.append(quota)
        if len(done) == len(quotas) and (not written or await self._write(written)):
            return True
        for quota in done:
            await self._undo(quota)
        return False

    async def _undo(self, quota: Quota) -> None:
        key = quota_key(quota)
        for attempt in count():
            if (value := await read_again(self._values, key, attempt)) is None:
                return
            left = b"%.6f" % max(0.0, float(value) - quota.cost)
            ttl = max(1.0, quota.until - self._link.time())
            if await self._values.compare_and_set(key, value, left, ttl, lossy=True):
                return

    async def _write(self, written: Sequence[tuple[str, bytes, int, float]]) -> bool:
        """Write all values if none has changed. Return whether they were written."""
        link, batch = self._link, secrets.token_hex(8)
        last = len(written)
        await self._ensure()
        for number, (subject, data, seq, seconds) in enumerate(written, 1):
            headers = {
                "Nats-Expected-Last-Subject-Sequence": str(seq),
                "Nats-TTL": str(math.ceil(seconds) + 2),
                "Nats-Msg-Id": f"{batch}-{number}",
            }
            if last > 1:
                headers |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
                if number < last:
                    await link.send(subject, data, headers)
                    continue
                headers["Nats-Batch-Commit"] = "1"
            try:
                await link.publish(self._stream, subject, data, headers, ensure=self._ensure)
            except JetStreamError as exc:
                if exc.code not in WRONG_LAST and last == 1:
                    raise
                return False
        return True

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        """See `Backend.release`."""
        for slot in slots:
            while True:
                seq, data = await self._read(slot)
                held = [] if data is None else _decode_slots(data)
                if (worker, slot.holder) not in held:
                    break
                held.remove((worker, slot.holder))
                if await self._write([(self._subject(slot), _encode(held), seq, _SLOT_SECONDS)]):
                    break
                await asyncio.sleep(_PAUSE)

    async def _read(self, charge: Charge) -> tuple[int, bytes | None]:
        if isinstance(charge, Quota):
            return 0, await self._values.get(quota_key(charge))
        found = await self._link.last(self._stream, self._subject(charge))
        return (0, None) if found is None else (found.seq, found.data)

    def _subject(self, charge: RateCharge | ConcurrencySlot) -> str:
        kind = "slot" if isinstance(charge, ConcurrencySlot) else "pace"
        return f"{self._link.address.namespace}.rate.{kind}.{token(charge.key)}"

    async def _ensure(self) -> None:
        config: dict[str, Any] = {
            "subjects": [f"{self._link.address.namespace}.rate.>"],
            "storage": "memory",
            "max_msgs_per_subject": 1,
            "max_bytes": _ROOM,
            "discard": "old",
            "allow_msg_ttl": True,
            "allow_atomic": True,
        }
        await self._link.ensure(self._stream, config)

    async def sweep(self) -> None:
        """Record when paces are dropped to free space."""
        try:
            state = (await self._link.info(self._stream))["state"]
        except JetStreamError:
            return
        if state["bytes"] > _ROOM * 0.95:
            self._forgot = self._link.time()


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
        self.charge = self._limits.charge
        self.release = self._limits.release
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
        except LocalError as exc:
            return f"NATS doesn't respond: {exc}"
        cluster: dict[str, Any] = info.get("cluster") or {}
        replicas: list[dict[str, Any]] = cluster.get("replicas") or []
        current = sum(bool(each.get("current")) and not each.get("offline") for each in replicas) + 1
        return (
            "" if current >= self._link.address.replicas else f"{current} of {len(replicas) + 1} replicas are current"
        )

    async def open(self) -> None:
        await self._link.open()
        outage = LogOnce(_logger, "Expired streams can't be dropped; retrying", "Expired streams are dropped again.")
        sweeps = run_on(asyncio.Event(), self._sweep, outage, every=_SWEEP_SECONDS, pause=_SWEEP_SECONDS)
        self._sweep_task = asyncio.create_task(sweeps)

    async def close(self) -> None:
        task, self._sweep_task = self._sweep_task, None
        await cancel_all(task)
        await self.log.close()
        self.kv.close()
        await self._link.close()

    async def bind(self, worker: str) -> None:
        """Do nothing, because NATS doesn't report ended connections."""

    async def _sweep(self) -> None:
        await self.log.sweep()
        await self._limits.sweep()


class NatsStore(BackendStore):
    """The store at an address. ``NatsStore(parse_address("nats://localhost?replicas=3"))``"""

    def __init__(self, address: NatsAddress, *, lease: float = LEASE) -> None:
        super().__init__(NatsBackend(address, lease=lease))
