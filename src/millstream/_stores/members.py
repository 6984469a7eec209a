"""`Members` on top of a `Map`: groups of members, each held by the workers that it's connected to.

The members of a group are spread over several records, so a change in a large group stays small. An arrival or
departure takes three steps: a compare-and-set that names the announcing worker, the announcement, and a compare-and-set
that marks it as done. Until then, no other worker announces a change to that member, which keeps announcements ordered.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from weakref import WeakValueDictionary
from zlib import crc32

import msgspec
from msgspec import Struct, field

from millstream._stores.base import Backend, CoAppend, Position
from millstream._stores.workers import Claim, LeasedWorker, SoleWorker, WorkerTable, read_again, update_worker_table

RECORDS = 128
"""Maximum number of records per group."""
TTL = 86400.0
"""Time to live of a record in seconds. `MapMembers.keep` renews it."""
_PREFIX = "member:"
_SWEEP = "roster:sweep"
_SWEEP_SECONDS = 10.0
_PAGE = 200


class MemberRecord(Struct, array_like=True):
    """One member of a group."""

    value: bytes
    workers: list[str]
    """The workers that hold the member. Empty while its departure is being announced."""
    announcer: str = ""
    """The worker that is announcing its arrival or departure, or an empty string."""


Record = dict[str, MemberRecord]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class MapMembers(Struct, eq=False):
    """The `Members` implementation for one worker."""

    _backend: Backend
    _workers: LeasedWorker | SoleWorker
    _held: dict[tuple[str, str], tuple[bytes, CoAppend]] = {}
    """Members that this worker holds: (group, member) -> (value, announcement)."""
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary[str, asyncio.Lock])
    """A lock per record, so this worker doesn't conflict with itself."""

    async def join(self, group: str, member: str, value: bytes, told: CoAppend) -> tuple[bytes, Position | None]:
        self._held[group, member] = value, told
        key, me = _key(group, member), self._workers.me
        async with self._lock(key):
            present = value

            def add(record: Record) -> str:
                nonlocal present
                held = record.get(member)
                if held is None:
                    record[member] = MemberRecord(value, [me], me)
                    present = value
                    return "announce"
                present = held.value
                if me in held.workers:
                    return "announce" if held.announcer == me else ""
                if not held.workers and self._announces(held):
                    return "wait"
                held.workers.append(me)
                if self._is_gone(held.announcer):
                    held.announcer = ""
                return "silent"

            outcome = await self._change(key, add)
            return present, await self._announce(key, member, told) if outcome == "announce" else None

    async def leave(self, group: str, member: str, told: CoAppend) -> Position | None:
        self._held.pop((group, member), None)
        key, me = _key(group, member), self._workers.me
        async with self._lock(key):

            def remove(record: Record) -> str:
                held = record.get(member)
                if held is None or (me not in held.workers and (held.workers or held.announcer != me)):
                    return ""
                others = [each for each in held.workers if each != me]
                if any(not self._is_gone(each) for each in others):
                    held.workers = others
                    if held.announcer == me:
                        held.announcer = ""
                    return "silent"
                if held.announcer != me and self._announces(held):
                    return "wait"
                held.workers, held.announcer = [], me
                return "announce"

            await self._workers.read()
            outcome = await self._change(key, remove)
            return await self._announce(key, member, told) if outcome == "announce" else None

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        await self._workers.read()
        found = await self._backend.kv.get_many([_name(group, number) for number in range(RECORDS)])
        return [
            (member, held.value)
            for raw in found
            if raw is not None
            for member, held in _decode(raw).items()
            if any(not self._is_gone(each) for each in held.workers)
        ]

    async def remove_abandoned(self) -> list[tuple[str, str, bytes]]:
        kv = self._backend.kv
        unswept = set((await self._workers.read()).unswept)
        claim = Claim(kv, _SWEEP, _SWEEP_SECONDS)
        if not unswept or not await claim.take():
            return []
        found: list[tuple[str, str, bytes]] = []
        keys = await kv.keys(_PREFIX)
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            for key, raw in zip(page, await kv.get_many(page), strict=True):
                if raw is not None and any(unswept & {*held.workers, held.announcer} for held in _decode(raw).values()):
                    found += await self._sweep(key)

        def remove_swept(table: WorkerTable) -> bool:
            table.unswept = [worker for worker in table.unswept if worker not in unswept]
            return True

        await update_worker_table(kv, remove_swept)
        await claim.leave()
        return found

    async def rejoin(self) -> None:
        """Rejoin all members, after this worker was renamed or the store may have lost data.

        Raises:
            LocalError: The store doesn't respond. Call it again.
        """
        for (group, member), (value, told) in list(self._held.items()):
            if (group, member) in self._held:  # it may have left in the meantime
                await self.join(group, member, value, told)

    async def keep(self) -> None:
        """Renew the time to live of records with members of this worker."""
        for key in {_key(*each) for each in self._held}:
            async with self._lock(key):
                await self._change(key, lambda record: "renew")

    async def _sweep(self, key: str) -> list[tuple[str, str, bytes]]:
        """Remove dead workers from a record. Return the members that have no holder left."""
        group, found = key.removeprefix(_PREFIX).rpartition(":")[0], list[tuple[str, str, bytes]]()

        def remove(record: Record) -> str:
            found.clear()
            for member, held in list(record.items()):
                held.workers = [each for each in held.workers if not self._is_gone(each)]
                if self._is_gone(held.announcer):
                    held.announcer = ""
                if not held.workers and not held.announcer:
                    found.append((group, member, held.value))
                    del record[member]
            return "swept"

        async with self._lock(key):
            await self._change(key, remove)
        return found

    async def _change(self, key: str, edit: Callable[[Record], str]) -> str:
        """Save a record unless `edit` returns an empty string. Return its result. If that's "wait", retry first."""
        kv, outcome = self._backend.kv, ""
        for attempt in count():
            raw = await read_again(kv, key, attempt)
            record: Record = {} if raw is None else _decode(raw)
            outcome = edit(record)
            if outcome == "wait":
                await self._workers.read()
            elif not outcome or await kv.compare_and_set(key, raw, _encode(record) if record else None, TTL):
                break
        return outcome

    async def _announce(self, key: str, member: str, told: CoAppend) -> Position:
        log, me = self._backend.log, self._workers.me
        position = await log.append(told.stream, told.data, ttl=told.ttl, max_entries=told.max_entries)

        def finish(record: Record) -> str:
            held = record.get(member)
            if held is None or held.announcer != me:
                return ""
            held.announcer = ""
            if not held.workers:
                del record[member]
            return "announced"

        await self._change(key, finish)
        return position

    def _is_gone(self, worker: str) -> bool:
        return worker in self._workers.dead

    def _announces(self, held: MemberRecord) -> bool:
        """Return whether another worker is announcing a change to a member."""
        return bool(held.announcer) and not self._is_gone(held.announcer)

    def _lock(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def _key(group: str, member: str) -> str:
    return _name(group, crc32(member.encode()) % RECORDS)


def _name(group: str, number: int) -> str:
    return f"{_PREFIX}{group}:{number:x}"
