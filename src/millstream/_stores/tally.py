"""Paces and slots in memory, and quotas in the map, for stores that one process owns."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext

from millstream._stores.base import Map
from millstream._stores.memory.log import kind_of
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
    drop_paces,
    quota_key,
    refuse_all,
)

MAX_PACES = 100_000


class UsageCounter:
    """The amounts taken, per worker.

    Args:
        values: Where the used parts of quotas are stored.
        clock: Returns seconds that never decrease.
    """

    def __init__(self, values: Map, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Configuration
        self._values = values
        self._clock = clock
        # Process
        self._paces: dict[str, float] = {}
        """Time at which each pace has fully recovered, by key, in order of first use."""
        self._forgot: dict[str, float] = {}
        """Time at which unexpired paces were last dropped, by kind."""
        self._slots: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        """Taken slots by key, as (worker, holder)."""
        self._workers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Number of taken slots by key and worker, so that those of dead workers are found without reading all."""
        self._lock = asyncio.Lock()
        """Serializes read-modify-write of quotas, which suspends if the store is a file."""

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> ChargeResults:
        """See `Backend.charge`.

        Args:
            worker: Id of the worker that takes slots.
            charges: What to take. Their keys are distinct.
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
                    result = check_slot(charge, self._holders(charge.key, dead), worker)
                found.append(result)
            refused = refuse_all(found)
            if refused is None:
                self._take_paces(full_at, now)
                for charge in charges:
                    if isinstance(charge, ConcurrencySlot):
                        self._take_slot(charge.key, (worker, charge.holder))
                for quota in quotas:
                    if quota.until > wall:
                        value = b"%.6f" % (used[quota.key] + quota.cost)
                        await self._values.put(quota_key(quota), value, quota.until - wall, lossy=True)
        forgot = [self._forgot[kind] for charge in charges if (kind := kind_of(charge.key)) in self._forgot]
        return ChargeResults(refused or found, self._clock() - max(forgot) if forgot else None)

    async def release(self, worker: str, slots: Sequence[ConcurrencySlot]) -> None:
        """See `Backend.release`.

        Args:
            worker: Id of the worker that has them.
            slots: The slots.
        """
        for slot in slots:
            self._free_slot(slot.key, (worker, slot.holder))

    def _holders(self, key: str, dead: Collection[str]) -> Collection[tuple[str, str]]:
        gone = [worker for worker in self._workers.get(key, ()) if worker in dead]
        if gone:
            for slot in [each for each in self._slots[key] if each[0] in gone]:
                self._free_slot(key, slot)
        return self._slots.get(key, ())

    def _take_slot(self, key: str, slot: tuple[str, str]) -> None:
        if slot not in self._slots[key]:
            self._slots[key].add(slot)
            self._workers[key][slot[0]] += 1

    def _free_slot(self, key: str, slot: tuple[str, str]) -> None:
        if slot in self._slots[key]:
            self._slots[key].remove(slot)
            self._workers[key] -= Counter([slot[0]])
        if not self._slots[key]:
            del self._slots[key]
            self._workers.pop(key, None)

    def _take_paces(self, full_at: Mapping[str, float], now: float) -> None:
        for key, at in full_at.items():
            if key not in self._paces and len(self._paces) >= MAX_PACES:
                kind = drop_paces(self._paces, MAX_PACES, now, kind_of)
                if kind is not None:
                    self._forgot[kind] = now
            self._paces[key] = at
