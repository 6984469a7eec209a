"""Who is in which group, in this process: each member with the workers that vouch for it."""

from collections import defaultdict

from millstream.stores.base import Position, Told
from millstream.stores.memory.log import MemoryLog


class Roster:
    """The members of all groups, for any number of workers whose lives somebody else watches."""

    __slots__ = ("_abandoned", "_groups", "_log", "_vouched")

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._groups: dict[str, dict[str, tuple[bytes, set[str]]]] = {}
        """Group → member → its value, and the workers that vouch for it: at least one."""
        self._vouched: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        """Worker → (group, member)."""
        self._abandoned: list[tuple[str, str, bytes]] = []

    def join(self, worker: str, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        """As `Members.join`."""
        found = self._groups.get(group, {}).get(member)
        position = None
        if found is None:
            position = self._tell(told)
            found = self._groups.setdefault(group, {})[member] = (value, set())
        found[1].add(worker)
        self._vouched[worker].add((group, member))
        return found[0], position

    def leave(self, worker: str, group: str, member: str, told: Told) -> Position | None:
        """As `Members.leave`."""
        found = self._groups.get(group, {}).get(member)
        if found is None or worker not in found[1]:
            return None
        position = self._tell(told) if len(found[1]) == 1 else None
        self._vouched[worker].discard((group, member))
        self._withdraw(worker, group, member)
        return position

    def present(self, group: str) -> list[tuple[str, bytes]]:
        """As `Members.present`."""
        return [(member, value) for member, (value, _) in self._groups.get(group, {}).items()]

    def gone(self, worker: str) -> None:
        """The lease of a worker is over."""
        for group, member in self._vouched.pop(worker, ()):
            value = self._withdraw(worker, group, member)
            if value is not None:
                self._abandoned.append((group, member, value))

    def abandoned(self) -> list[tuple[str, str, bytes]]:
        """As `Members.abandoned`."""
        found, self._abandoned = self._abandoned, []
        return found

    def _withdraw(self, worker: str, group: str, member: str) -> bytes | None:
        """Take a worker out; the value of a member that nobody else vouches for."""
        members = self._groups[group]
        value, workers = members[member]
        workers.discard(worker)
        if workers:
            return None
        del members[member]
        if not members:
            del self._groups[group]
        return value

    def _tell(self, told: Told) -> Position:
        return self._log.add(told.stream, told.data, told.ttl, told.max_entries)


class MemoryMembers:
    """`Members` as one worker sees them."""

    __slots__ = ("_me", "roster")

    def __init__(self, roster: Roster, me: str) -> None:
        self.roster = roster
        self._me = me

    async def join(self, group: str, member: str, value: bytes, told: Told) -> tuple[bytes, Position | None]:
        return self.roster.join(self._me, group, member, value, told)

    async def leave(self, group: str, member: str, told: Told) -> Position | None:
        return self.roster.leave(self._me, group, member, told)

    async def present(self, group: str) -> list[tuple[str, bytes]]:
        return self.roster.present(group)

    async def abandoned(self) -> list[tuple[str, str, bytes]]:
        return self.roster.abandoned()
