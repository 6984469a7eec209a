"""The in-memory store of one process and one thread. Its data isn't shared, and is lost when the process ends.

No method suspends, and there is no timer: expired data are absent immediately, and later calls free their memory a few
items at a time. Each kind of values or streams is bounded in bytes, including keys and overhead. A full kind of values
rejects writes with `StoreFull` instead of evicting values, because evicting a tombstone would revive its session. Part
of the space is reserved for values as small as tombstones, so session data can't keep one out.
"""

import asyncio
import secrets
import sys
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext

from millstream._copies import NotCopyable
from millstream._stores.base import Map, OwnerQuotaExceeded, StoreFull
from millstream._stores.memory.log import ITEM_BYTES, SWEEP, ExpiryHeap, MemoryLog, exact, kind_of
from millstream._stores.rates import (
    Charge,
    ChargeResult,
    ConcurrencySlot,
    Quota,
    RateCharge,
    check_pace,
    check_quota,
    check_slot,
    drop_paces,
    owner_for,
    quota_key,
    refuse_all,
    rooms_for,
)
from millstream._stores.tail import never

MAX_PACES = 100_000


class UsageCounter(NotCopyable):
    """Counts of the amounts that each worker has taken.

    Args:
        values: Where the used parts of quotas are stored.
        clock: Returns seconds that never decrease.
    """

    def __init__(self, values: Map, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._values = values
        self._clock = clock
        self._paces: dict[str, float] = {}
        """Time at which each rate has fully recovered, by key, in order of first use."""
        self._slots: dict[str, dict[str, set[str]]] = {}
        """Holders of taken slots by key and worker, so a dead worker's slots are found without a scan."""
        self._lock = asyncio.Lock()
        """Serializes read-modify-write of quotas, which suspends if the store is a file."""

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> list[ChargeResult]:
        """See `Backend.charge`.

        Args:
            worker: Id of the worker that takes slots.
            charges: Charges with distinct keys.
            dead: Workers whose slots are free.
        """
        quotas = [charge for charge in charges if isinstance(charge, Quota)]
        async with self._lock if quotas else nullcontext():
            values = await self._values.get_many(list(map(quota_key, quotas))) if quotas else []
            used = {quota.key: float(value or 0) for quota, value in zip(quotas, values, strict=True)}
            now, wall = self._clock(), time.time()
            found: list[ChargeResult] = []
            full_at: dict[str, float] = {}
            for charge in charges:
                if isinstance(charge, RateCharge):
                    result, full_at[charge.key] = check_pace(charge, self._paces.get(charge.key, now), now)
                elif isinstance(charge, Quota):
                    result = check_quota(charge, used[charge.key], wall)
                else:
                    held = self._holders(charge.key, dead)
                    is_held = charge.holder in held.get(worker, ())
                    result = check_slot(charge, sum(map(len, held.values())), is_held=is_held)
                found.append(result)
            refused = refuse_all(found)
            if refused is None:
                self._take_paces(full_at, now)
                for charge in charges:
                    if isinstance(charge, ConcurrencySlot):
                        self._slots.setdefault(charge.key, {}).setdefault(worker, set()).add(charge.holder)
                for quota in quotas:
                    if quota.until > wall:
                        value = b"%.6f" % (used[quota.key] + quota.cost)
                        await self._values.put(quota_key(quota), value, quota.until - wall, lossy=True)
        return refused or found

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        """See `Backend.release`.

        Args:
            worker: Id of the worker that has them.
            slots: The slots.
        """
        for slot in slots:
            self._slots.get(slot.key, {}).get(worker, set()).discard(slot.holder)
            self._holders(slot.key, ())

    def _holders(self, key: str, dead: Collection[str]) -> Mapping[str, Collection[str]]:
        """Return the holders of a key's slots by worker. Forget workers that are dead or have no slots."""
        held = {
            worker: holders for worker, holders in self._slots.pop(key, {}).items() if holders and worker not in dead
        }
        if held:
            self._slots[key] = held
        return held

    def _take_paces(self, full_at: Mapping[str, float], now: float) -> None:
        for key, at in full_at.items():
            if key not in self._paces and len(self._paces) >= MAX_PACES:
                drop_paces(self._paces, MAX_PACES, now, kind_of)
            self._paces[key] = at


class ValueKind:
    """The values of one kind."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lossy: defaultdict[str, OrderedDict[str, None]] = defaultdict(OrderedDict)
        """Keys of lossy values by share, oldest write first. The share "" has those of the whole kind."""
        self.size = 0
        """Stored bytes, as counted against the bound."""
        self.shares: Counter[str] = Counter()
        """Stored bytes by share."""

    def count(self, key: str, growth: int) -> None:
        """Add to the stored bytes of a key's kind and share."""
        self.size += growth
        share = owner_for(key)
        if share:
            self.shares[share] += growth
            if not self.shares[share]:
                del self.shares[share]

    def growth(self, key: str, value: bytes) -> int:
        """Return the additional bytes that a new value needs."""
        old = self.values.get(key)
        return len(value) - len(old) if old is not None else len(value) + len(key) + ITEM_BYTES


class MemoryMap(NotCopyable):
    """A `Map` with a dict for each kind."""

    def __init__(self, clock: Callable[[], float], max_bytes: int) -> None:
        self._clock = clock
        self.max_bytes = max_bytes
        """Maximum bytes per kind."""
        self._deadlines = ExpiryHeap[str]()
        self.kinds: defaultdict[str, ValueKind] = defaultdict(ValueKind)
        """Values by kind. There are few kinds, because the program chooses them, not its clients."""

    async def get(self, key: str) -> bytes | None:
        return self._present(key, self._clock())

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        now = self._clock()
        return [self._present(key, now) for key in keys]

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        self._store(key, value, ttl, self._clock(), lossy)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        now = self._clock()
        present = self._present(key, now)
        if present != expected:
            return False
        if value is not None:
            self._store(key, value, ttl, now, lossy)
        elif present is not None:
            self._forget(key)
        return True

    async def delete(self, key: str) -> bool:
        if self._present(key, self._clock()) is None:
            return False
        self._forget(key)
        return True

    async def keys(self, prefix: str) -> list[str]:
        now, passed = self._clock(), self._deadlines.has_expired
        kinds = [self.kinds[kind_of(prefix)]] if ":" in prefix else self.kinds.values()
        return [key for kind in kinds for key in kind.values if key.startswith(prefix) and not passed(key, now)]

    def _present(self, key: str, now: float) -> bytes | None:
        self._sweep(now)
        value = self.kinds[kind_of(key)].values.get(key)
        if value is not None and self._deadlines.has_expired(key, now):
            self._forget(key)
            return None
        return value

    def _store(self, key: str, value: bytes, ttl: float, now: float, lossy: bool) -> None:
        self._present(key, now)  # an expired value must not be counted
        kind = self.kinds[kind_of(key)]
        self._make_room(kind, key, value, now, lossy)
        kind.count(key, kind.growth(key, value))
        kind.values[key] = exact(value)
        self._deadlines.set(key, now + ttl)
        for share in {"", owner_for(key)} if lossy else ():
            kind.lossy[share][key] = None
            kind.lossy[share].move_to_end(key)

    def _make_room(self, kind: ValueKind, key: str, value: bytes, now: float, lossy: bool) -> None:
        if kind.growth(key, value) <= 0:
            return
        rooms = rooms_for(key, value, self.max_bytes, lossy=lossy)

        def is_full(share: str) -> bool:
            return (kind.shares[share] if share else kind.size) + kind.growth(key, value) > rooms[share]

        for share, room in rooms.items():
            if not is_full(share):
                continue
            self._sweep(now, sys.maxsize)
            evicts = lossy and len(key) + len(value) + ITEM_BYTES <= room
            while evicts and share in kind.lossy and is_full(share):
                self._forget(next(iter(kind.lossy[share])))
            if is_full(share):
                text = f"The in-memory store is full: this {'share' if share else 'kind'} is limited to {room} bytes."
                raise (OwnerQuotaExceeded if share else StoreFull)(text)

    def _sweep(self, now: float, look: int = SWEEP) -> None:
        for key in self._deadlines.due(now, look):
            self._forget(key)

    def _forget(self, key: str) -> None:
        self._deadlines.forget(key)
        kind = self.kinds[kind_of(key)]
        kind.count(key, -(len(kind.values.pop(key)) + len(key) + ITEM_BYTES))
        for share in {"", owner_for(key)} & kind.lossy.keys():
            kind.lossy[share].pop(key, None)
            if not kind.lossy[share]:
                del kind.lossy[share]
        if not kind.values:
            kind.values.clear()  # frees the table, which an emptied dict keeps


class ProcessBackend(UsageCounter):
    """What the backends of one process have in common: no other workers, and no connection."""

    shared = False
    lease = 0.0

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Do nothing, because the epoch doesn't change while the store is open."""
        return never

    def time(self) -> float:
        return time.time()

    async def bind(self, worker: str) -> None:
        """Do nothing, because there is no connection."""


class MemoryBackend(ProcessBackend):
    """A `Backend` for one process. Data live as long as the object, even if it's closed and reopened."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        epoch: str = "",
        max_value_bytes: int = 32 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Create an empty store.

        Args:
            clock: Monotonic clock for times to live, in seconds.
            epoch: Epoch of its positions. Random by default.
            max_value_bytes: Maximum total bytes of the values of each kind.
            max_log_bytes: Maximum total bytes of the streams of each kind.
        """
        self.epoch = epoch or secrets.token_hex(6)
        self.kv = MemoryMap(clock, max_value_bytes)
        self.log = MemoryLog(clock, max_log_bytes, self.epoch)
        super().__init__(self.kv, clock=clock)

    async def degraded_reason(self) -> str:
        return ""

    async def open(self) -> None:
        """Do nothing, because there is no connection."""

    async def close(self) -> None:
        self.log.remove_listeners()
