"""Paces and seats in memory, and quotas in the map, for stores that one process owns."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext

from millstream._stores.base import Map
from millstream._stores.rates import SEAT_WAIT, Charge, ChargeResult, ChargeResults, Pace, Quota, Seat

MAX_PACES = 100_000
_SLACK = 1e-6


class Tally:
    """The amounts taken, per worker."""

    def __init__(self, values: Map, *, clock: Callable[[], float] = time.monotonic) -> None:
        # Configuration
        self._values = values
        self._clock = clock
        # Process
        self._paces: dict[str, float] = {}
        """Time at which each pace has fully recovered, by key, in order of first use."""
        self._forgot: dict[str, float] = {}
        """Time at which unexpired paces were last dropped, by kind."""
        self._seats: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        """Taken seats by key, as (worker, holder)."""
        self._lock = asyncio.Lock()
        """Serializes read-modify-write of quotas, which suspends if the store is a file."""

    async def charge(self, worker: str, charges: Sequence[Charge], dead: Collection[str]) -> ChargeResults:
        """See `Backend.charge`."""
        quotas = [charge for charge in charges if isinstance(charge, Quota)]
        async with self._lock if quotas else nullcontext():
            used = await self._used_amounts(quotas)
            now, wall = self._clock(), time.time()
            found = [self._look(worker, charge, dead, used, now, wall) for charge in charges]
            if all(each.wait <= 0 for each in found):
                for charge, each in zip(charges, found, strict=True):
                    self._take(worker, charge, each, now)
                for quota in quotas:
                    if quota.until > wall:
                        value = b"%.6f" % (used[quota.key] + quota.cost)
                        await self._values.put(_name(quota), value, quota.until - wall, lossy=True)
            else:
                found = [ChargeResult(each.wait, each.remaining + each.amount) for each in found]
        forgot = [self._forgot[kind] for kind in map(_kind_of, charges) if kind in self._forgot] if self._forgot else []
        return ChargeResults(found, self._clock() - max(forgot) if forgot else None)

    async def release(self, worker: str, seats: Sequence[Seat]) -> None:
        """See `Backend.release`."""
        for seat in seats:
            if seat.key in self._seats:
                self._keep(seat.key, self._seats[seat.key] - {(worker, seat.holder)})

    async def _used_amounts(self, quotas: Sequence[Quota]) -> dict[str, float]:
        if not quotas:
            return {}
        values = await self._values.get_many([_name(quota) for quota in quotas])
        return {quota.key: float(value or 0) for quota, value in zip(quotas, values, strict=True)}

    def _look(
        self, worker: str, charge: Charge, dead: Collection[str], used: dict[str, float], now: float, wall: float
    ) -> ChargeResult:
        """Return the result of a charge without applying it."""
        if isinstance(charge, Pace):
            each = charge.seconds / charge.count
            room = charge.seconds - max(0.0, self._paces.get(charge.key, now) - now)
            missing = each * min(charge.cost, charge.count) - room
            amount = max(charge.cost, min(charge.most, room // each))
            return _charge_result(missing if missing > _SLACK else 0.0, room / each + _SLACK, amount)
        if isinstance(charge, Quota):
            room = charge.count - used[charge.key]
            enough = min(charge.cost, charge.count) <= room + _SLACK
            return _charge_result(0.0 if enough else max(_SLACK, charge.until - wall), room, charge.cost)
        held = self._seats.get(charge.key, set())
        if any(each[0] in dead for each in held):
            held = {each for each in held if each[0] not in dead}
            self._keep(charge.key, held)
        if (worker, charge.holder) in held:
            return _charge_result(0.0, charge.count - len(held), 0.0)
        free = charge.count - len(held)
        return _charge_result(0.0 if free > 0 else SEAT_WAIT, free, 1.0)

    def _take(self, worker: str, charge: Charge, taken: ChargeResult, now: float) -> None:
        if isinstance(charge, Seat):
            self._seats[charge.key].add((worker, charge.holder))
        elif isinstance(charge, Pace):
            if charge.key not in self._paces and len(self._paces) >= MAX_PACES:
                self._forget(now)
            whole = max(now, self._paces.get(charge.key, now))
            self._paces[charge.key] = whole + charge.seconds / charge.count * taken.amount

    def _keep(self, key: str, held: set[tuple[str, str]]) -> None:
        if held:
            self._seats[key] = held
        else:
            del self._seats[key]

    def _forget(self, now: float) -> None:
        """Drop fully recovered paces, then the older half of the most frequent kind.

        Many paces of one kind, such as proofs, thus don't displace those of other kinds.
        """
        kept = {key: at for key, at in self._paces.items() if at > now}
        if len(kept) >= MAX_PACES:
            kinds = Counter(map(_kind, kept))
            kind, count = kinds.most_common(1)[0]
            for key in [key for key in kept if _kind(key) == kind][: (count + 1) // 2]:
                del kept[key]
            self._forgot[kind] = now
        self._paces = kept


def _charge_result(wait: float, room: float, amount: float) -> ChargeResult:
    """Return the result of a charge. If it's allowed, `remaining` is the remainder."""
    return ChargeResult(wait, max(0.0, room)) if wait > 0 else ChargeResult(0.0, max(0.0, room - amount), amount)


def _kind(key: str) -> str:
    kind, mark, _ = key.partition(":")
    return kind if mark else ""  # names of limits are digests


def _kind_of(charge: Charge) -> str:
    return _kind(charge.key)


def _name(quota: Quota) -> str:
    return f"quota:{quota.key}"
