"""`Members` of several workers, for a process that holds the store of all of them.

Memory holds who vouches for whom: members are of living processes, so nothing of it has to outlive the one that holds
the store. What others hear of them goes through the log, whatever that is.
"""

import asyncio
from weakref import WeakValueDictionary

from millstream._stores.base import EventLog, Position, Told

Place = tuple[str, str]
"""A group and a member."""


class _Member:
    __slots__ = ("value", "workers")

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.workers: set[str] = set()
        """Who vouches for it. Nobody any more: it waits to be handed out as abandoned, or for somebody to take over."""


class Groups:
    """Members by group, and the workers that vouch for them."""

    __slots__ = ("_abandoned", "_by_worker", "_groups", "_locks", "_log")

    def __init__(self, log: EventLog) -> None:
        # Configuration
        self._log = log
        # Process
        self._groups: dict[str, dict[str, _Member]] = {}
        self._by_worker: dict[str, set[Place]] = {}
        """Whom each living worker vouches for."""
        self._abandoned: dict[Place, None] = {}
        self._locks: WeakValueDictionary[Place, asyncio.Lock] = WeakValueDictionary()
        """One change of a member at a time: an append may take a while. They live while somebody uses them."""

    def come(self, worker: str) -> None:
        """A worker lives from now on."""
        self._by_worker[worker] = set()

    def go(self, worker: str) -> None:
        """A worker vouches for nobody any more."""
        for place in self._by_worker.pop(worker, ()):
            self._drop(place, worker)

    async def join(
        self, worker: str, group: str, member: str, value: bytes, told: Told
    ) -> tuple[bytes, Position | None]:
        """As `Members.join`."""
        place = (group, member)
        async with self._lock(place):
            held = self._find(place)
            position = None
            if held is None:
                position = await self._log.append(told.stream, told.data, ttl=told.ttl, max_entries=told.max_entries)
                held = self._groups.setdefault(group, {})[member] = _Member(value)
            held.workers.add(worker)
            self._abandoned.pop(place, None)
            places = self._by_worker.get(worker)
            if places is None:  # it died while its arrival was written down
                self._drop(place, worker)
            else:
                places.add(place)
            return held.value, position

    async def leave(self, worker: str, group: str, member: str, told: Told) -> Position | None:
        """As `Members.leave`."""
        place = (group, member)
        async with self._lock(place):
            held = self._find(place)
            if held is None or worker not in held.workers:
                return None
            position = None
            if len(held.workers) == 1:
                position = await self._log.append(told.stream, told.data, ttl=told.ttl, max_entries=told.max_entries)
            held.workers.discard(worker)
            self._by_worker.get(worker, set()).discard(place)
            if position is not None:
                self._forget(place)
            return position

    def present(self, group: str) -> list[tuple[str, bytes]]:
        """As `Members.present`."""
        return [(name, held.value) for name, held in self._groups.get(group, {}).items() if held.workers]

    def abandoned(self) -> list[tuple[str, str, bytes]]:
        """As `Members.abandoned`."""
        found: list[tuple[str, str, bytes]] = []
        for place in list(self._abandoned):
            held = self._find(place)
            if held is not None and place not in self._locks:  # else somebody tells of it at this moment
                found.append((*place, held.value))
                self._forget(place)
        return found

    def _lock(self, place: Place) -> asyncio.Lock:
        lock = self._locks.get(place)
        if lock is None:
            lock = self._locks[place] = asyncio.Lock()
        return lock

    def _find(self, place: Place) -> _Member | None:
        return self._groups.get(place[0], {}).get(place[1])

    def _drop(self, place: Place, worker: str) -> None:
        held = self._find(place)
        if held is not None:
            held.workers.discard(worker)
            if not held.workers:
                self._abandoned[place] = None

    def _forget(self, place: Place) -> None:
        self._abandoned.pop(place, None)
        group, member = place
        members = self._groups[group]
        del members[member]
        if not members:
            del self._groups[group]


class GroupsOf:
    """`Members` as one worker sees them."""

    __slots__ = ("_worker", "groups")

    def __init__(self, groups: Groups, worker: str) -> None:
        self.groups = groups
        self._worker = worker

    async def join(self, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        return await self.groups.join(self._worker, group, member, value, told)

    async def leave(self, group: str, member: str, told: Told) -> Position | None:
        return await self.groups.leave(self._worker, group, member, told)

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        return self.groups.present(group)

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        return self.groups.abandoned()
