"""The store on NATS JetStream.

The map has one JetStream stream per kind, which stores the newest message of each key. Compare-and-set uses the
sequence of that message, which JetStream checks when it adds the next one. Each message has a time to live. The server
deletes it soon after that; reads treat it as absent immediately.

Rates and slots are in-memory messages that change in one atomic batch. Quotas are values of the durable map.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from functools import partial
from itertools import count

import msgspec
from msgspec import Struct, field

from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import Json
from millstream._stores.base import OwnerQuotaExceeded, StoreFull
from millstream._stores.memory.log import ITEM_BYTES, kind_of
from millstream._stores.nats.link import (
    FULL,
    TOO_LARGE,
    WRONG_LAST,
    JetStreamError,
    NatsAddress,
    NatsLink,
    StreamMessage,
    read_token,
    token,
)
from millstream._stores.nats.log import NatsLog
from millstream._stores.rates import (
    MARK_BYTES,
    PART,
    Charge,
    ChargeResult,
    ConcurrencySlot,
    Quota,
    RateCharge,
    check_pace,
    check_quota,
    check_slot,
    owner_for,
    quota_key,
    refuse_all,
    share_room,
)
from millstream._stores.workers import read_again
from millstream._tasks import SingleFlight, cancel_all
from millstream._troubles import LogOnce, run_on

ROOM = 64 * 1024 * 1024
"""Maximum bytes for each kind of values, and for rates and slots."""
_TTL = "Millstream-TTL"
_GONE = "Millstream-Gone"
_EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_FRESH = 1.0
"""Seconds that the size of a kind is cached."""
_SHARE_FRESH = 30.0
_READ_AGAIN = 5
"""A full share is read again after this multiple of the time that it took."""
MAX_SIZES = 10_000
"""Maximum cached sizes. Callers without sign-in can have any number of shares."""
_AT_ONCE = 64
_PAUSE = 0.002


class _Size(Struct):
    """The last known size of a kind or share, plus the bytes that this worker has added since."""

    bytes: int = 0
    at: float = -math.inf
    took: float = 0.0
    """Seconds that reading it took."""


class NatsMap(Struct, eq=False):
    """`Map` in JetStream."""

    _link: NatsLink
    _sizes: dict[str, _Size] = {}
    """Sizes by the kind's JetStream stream, or by the share's subject."""
    _counting: SingleFlight[None] = field(default_factory=SingleFlight[None])

    def close(self) -> None:
        """Clear the cache."""
        self._sizes.clear()

    async def get(self, key: str) -> bytes | None:
        _, old = await self._find(key)
        return None if old is None else old.data

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return list(await asyncio.gather(*map(self.get, keys)))

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        old = None
        if owner_for(key):
            _, old = await self._find(key)
        await self._check_room(key, value, old, lossy=lossy)
        await self._write(key, value, ttl, lossy, {})

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        while True:
            seq, old = await self._find(key)
            if (None if old is None else old.data) != expected:
                return False
            if value is None and old is None:
                return True
            try:
                if value is not None:
                    await self._check_room(key, value, old, lossy=lossy)
                await self._write(key, value, ttl, lossy, {_EXPECTED_SEQUENCE: str(seq)})
            except JetStreamError as exc:
                if exc.code not in WRONG_LAST:
                    raise
                # It was changed by another worker, or has expired.
                await asyncio.sleep(_PAUSE)
                continue
            if value is None and old is not None:
                self._grow(key, -_cost(key, old.data))
            return True

    async def delete(self, key: str) -> bool:
        while (value := await self.get(key)) is not None:
            if await self.compare_and_set(key, value, None, 1.0):
                return True
        return False

    async def keys(self, prefix: str) -> list[str]:
        subjects = f"{self._link.address.namespace}.map.>"
        streams = [self._stream(prefix)] if ":" in prefix else await self._link.names(subjects)
        names = [
            name
            for stream in streams
            for subject in await self._link.subjects(stream, subjects)
            if (name := read_token(subject.rpartition(".")[2])).startswith(prefix)
        ]
        found: list[str] = []
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            found += [name for name, value in zip(some, await self.get_many(some), strict=True) if value is not None]
        return found

    async def _find(self, key: str) -> tuple[int, StreamMessage | None]:
        """Return the sequence of a key's last message, and this message if the value is live."""
        found = await self._link.last(self._stream(key), self._subject(key))
        return (0, None) if found is None else (found.seq, found if self._lives(found) else None)

    def _lives(self, message: StreamMessage) -> bool:
        return _GONE not in message.headers and message.at + float(message.headers[_TTL]) > self._link.time()

    async def _write(self, key: str, value: bytes | None, ttl: float, lossy: bool, headers: dict[str, str]) -> None:
        """Add the next message of a key.

        Raises:
            JetStreamError: JetStream rejected it, for example because the last message isn't the expected one.
        """
        stream = self._stream(key)
        if value is None:
            headers |= {_GONE: "1", "Nats-TTL": "2"}
        else:
            headers |= {_TTL: repr(ttl), "Nats-TTL": str(math.ceil(ttl) + 2)}

        config = partial(self._config, key, lossy)
        try:
            await self._link.publish(stream, self._subject(key), value or b"", headers, config=config)
        except JetStreamError as exc:
            if exc.code in FULL or exc.code == TOO_LARGE:
                raise StoreFull(f"NATS has no space for a value: {exc}") from exc
            raise

    # Space

    async def _check_room(self, key: str, value: bytes, old: StreamMessage | None, *, lossy: bool) -> None:
        """Check that a value fits.

        Raises:
            StoreFull: The value doesn't fit.
        """
        if len(value) > self._link.max_bytes:
            raise StoreFull(f"A value of {len(value)} bytes exceeds the {self._link.max_bytes} bytes that NATS allows.")
        share = owner_for(key)
        if lossy and not share:
            return
        growth = _cost(key, value) - (_cost(key, old.data) if old is not None else 0)
        if growth > 0:
            room = share_room(value, ROOM, lossy=lossy)
            is_mark = len(value) <= MARK_BYTES
            if not (lossy or is_mark) and await self._kind_size(self._stream(key), growth) + growth > ROOM:
                raise StoreFull(f"The {ROOM} bytes for this kind of value are full.")
            # The share is last, so that nothing waits between this check and `_grow`.
            if share and await self._share_size(key, growth, room) + growth > room:
                if not lossy or growth > room:
                    raise OwnerQuotaExceeded(f"The caller's share of {room} bytes is full.")
                await self._evict(key, growth)
        self._grow(key, growth)

    async def _evict(self, key: str, growth: int) -> None:
        """Drop the oldest values of a share. Finding them requires reading the values, so it drops more than
        necessary."""
        size, seq = self._sizes[self._share(key)], 1
        async with aclosing(self._live_values(key)) as values:
            async for each, cost in values:
                if size.bytes + growth <= ROOM // PART * 7 // 8:
                    break
                seq, size.bytes = each + 1, size.bytes - cost
        await self._link.purge(self._stream(key), self._share(key), before=seq)

    def _grow(self, key: str, growth: int) -> None:
        for name in (self._stream(key), self._share(key)):
            if name in self._sizes:
                self._sizes[name].bytes += growth

    async def _kind_size(self, stream: str, growth: int) -> int:
        size, now = self._sizes.setdefault(stream, _Size()), time.monotonic()
        if now - size.at > _FRESH or size.bytes + growth > ROOM * 3 // 4:
            size.bytes, size.at = await self._link.size(stream), now
        return size.bytes

    async def _share_size(self, key: str, growth: int, room: int) -> int:
        name, now = self._share(key), time.monotonic()
        if len(self._sizes) > MAX_SIZES:
            self._sizes.clear()
        size = self._sizes.setdefault(name, _Size())
        age, is_full = now - size.at, size.bytes + growth > room
        # Values of other workers, and expired ones, are found by reading the share. A caller could cause that with
        # each value that doesn't fit.
        if age > _SHARE_FRESH or (is_full and age > max(_FRESH, _READ_AGAIN * size.took)):
            await self._counting.run(name, partial(self._count, key, size))
        return size.bytes

    async def _count(self, key: str, size: _Size) -> None:
        """Read the size of a share."""
        began, before, total = time.monotonic(), size.bytes, 0
        async for _, cost in self._live_values(key):
            total += cost
        size.bytes += total - before  # this also counts additions by this worker in the meantime
        size.at = time.monotonic()
        size.took = size.at - began

    async def _live_values(self, key: str) -> AsyncGenerator[tuple[int, int]]:
        """Yield the sequence and the cost of each value in a key's share, oldest first."""
        stream, seq = self._stream(key), 1
        while await self._link.size(stream) and (
            page := await self._link.batch(stream, self._share(key), seq, 1000, 4 * 1024 * 1024)
        ):
            for each in page:
                if self._lives(each):
                    yield each.seq, _cost(read_token(each.subject.rpartition(".")[2]), each.data)
            seq = page[-1].seq + 1

    # Names

    def _stream(self, key: str) -> str:
        return f"{self._link.address.namespace}-map-{token(kind_of(key))}"

    def _share(self, key: str) -> str:
        share = owner_for(key)
        place = token(share) if share else "-"
        return f"{self._link.address.namespace}.map.{token(kind_of(key))}.{place}.*"

    def _subject(self, key: str) -> str:
        return f"{self._share(key)[:-1]}{token(key)}"

    def _config(self, key: str, lossy: bool) -> Json:
        return {
            "subjects": [f"{self._link.address.namespace}.map.{token(kind_of(key))}.>"],
            "max_msgs_per_subject": 1,
            "max_bytes": ROOM if lossy else ROOM * 5 // 4,
            "discard": "old" if lossy else "new",
            "allow_direct": True,
            "allow_msg_ttl": True,
        }


def _cost(key: str, value: bytes) -> int:
    return len(key) + len(value) + ITEM_BYTES


_SLOT_SECONDS = 86400
_LOCKS = 64

SlotHolders = list[tuple[str, str]]
"""The (worker, holder) pair of each slot."""
_decode_slots = msgspec.msgpack.Decoder(SlotHolders).decode
_encode = msgspec.msgpack.Encoder().encode
_decode_time = msgspec.msgpack.Decoder(float).decode


class NatsLimits(Struct, eq=False):
    """Implements `Backend.charge` and `Backend.release` for NATS."""

    _link: NatsLink
    _values: NatsMap
    _locks: list[asyncio.Lock] = field(default_factory=lambda: [asyncio.Lock() for _ in range(_LOCKS)])

    @property
    def _stream(self) -> str:
        return f"{self._link.address.namespace}-rates"

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> list[ChargeResult]:
        """See `Backend.charge`."""
        if not charges:
            return []
        async with self._locks[hash(charges[0].key) % _LOCKS]:
            while (taken := await self._try(worker, charges, dead)) is None:  # noqa: ASYNC110  NATS sends no event
                await asyncio.sleep(_PAUSE * (1 + secrets.randbelow(8)))
        return taken

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
                result = check_slot(charge, len(held), is_held=(worker, charge.holder) in held)
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
        else:
            if not written or await self._write(written):
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
        await link.ensure(self._stream, self._config)
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
                await link.publish(self._stream, subject, data, headers, config=self._config)
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

    def _config(self) -> Json:
        return {
            "subjects": [f"{self._link.address.namespace}.rate.>"],
            "storage": "memory",
            "max_msgs_per_subject": 1,
            "max_bytes": ROOM,
            "discard": "old",
            "allow_msg_ttl": True,
            "allow_atomic": True,
        }


LEASE = 15.0
"""Lease time in seconds, longer than a leader election takes."""
_SWEEP_SECONDS = 10.0


class NatsBackend:
    """A `Backend` on JetStream. With three replicas, acknowledged data survive the loss of a node."""

    shared = True

    def __init__(self, address: NatsAddress, *, lease: float = LEASE) -> None:
        self.lease = lease
        self._link = NatsLink(address)
        self.troubles = self._link.troubles
        self.watch = self._link.epochs.watch
        self.time = self._link.time
        self.log = NatsLog(self._link)
        self.kv = NatsMap(self._link)
        self._limits = NatsLimits(self._link, self.kv)
        self.charge = self._limits.charge
        self.release = self._limits.release
        self._sweep_task: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> str:
        return self._link.epoch

    async def degraded_reason(self) -> str:
        """Return how many replicas are missing, as text."""
        if self._link.address.replicas == 1:
            return ""
        try:
            info = await self._link.info(f"{self._link.address.namespace}-meta")
        except LocalError as exc:
            return f"NATS doesn't respond: {exc}"
        cluster: Json = info.get("cluster") or {}
        replicas: list[Json] = cluster.get("replicas") or []
        current = sum(bool(each.get("current")) and not each.get("offline") for each in replicas) + 1
        return (
            "" if current >= self._link.address.replicas else f"{current} of {len(replicas) + 1} replicas are current"
        )

    async def open(self) -> None:
        await self._link.open()
        outage = LogOnce(
            self.troubles,
            "Expired streams can't be dropped; retrying",
            "Expired streams can be dropped again.",
        )
        sweeps = run_on(asyncio.Event(), self.log.sweep, outage, every=_SWEEP_SECONDS, pause=_SWEEP_SECONDS)
        self._sweep_task = asyncio.create_task(sweeps)

    async def close(self) -> None:
        task, self._sweep_task = self._sweep_task, None
        await cancel_all(task)
        await self.log.close()
        self.kv.close()
        await self._link.close()

    async def bind(self, worker: str) -> None:
        """Do nothing, because NATS doesn't report ended connections."""
