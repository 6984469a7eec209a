"""Who is on a channel: the clients that gave an id, on all workers.

Each (channel, client) is one key, whose value names the workers where the client is connected and until when each
of them vouches for it. Changes are compare-and-set, so of all workers exactly one sees the first arrival and the last
departure and tells them; and of those that find a member whose workers are all dead, one tells that it left.
"""

from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from millstream.hub.limits import HubLimits
from millstream.stores.base import KeyValue

_PREFIX = "presence:"
_KEEP = 4
"""Lifetimes for which a key outlives its members, so that somebody finds it and tells that they left."""


class Member(Struct, frozen=True, omit_defaults=True):
    """A client on a channel."""

    client_id: str
    name: str = ""
    since: float = 0.0


class _Entry(Struct, array_like=True):
    member: Member
    workers: dict[str, float]
    """Worker → the time until which it vouches for the client."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode

Announce = Callable[[str, str, Member], Awaitable[object]]
"""``announce(channel, "join" or "leave", member)``"""


class Presence:
    """The members of all channels, as one worker keeps them."""

    __slots__ = ("_announce", "_clock", "_here", "_kv", "_ttl", "_worker")

    def __init__(
        self, kv: KeyValue, limits: HubLimits, clock: Callable[[], float], worker: str, announce: Announce
    ) -> None:
        # configuration
        self._kv = kv
        self._ttl = limits.presence_ttl
        self._clock = clock
        self._worker = worker
        self._announce = announce
        # process
        self._here: dict[tuple[str, str], list[Member]] = {}
        """The connections of each client on each channel to this worker."""

    async def join(self, channel: str, member: Member) -> None:
        """A connection of a client joins a channel."""
        here = self._here.setdefault((channel, member.client_id), [])
        here.append(member)
        if len(here) == 1 and await self._vouch(channel, member):
            await self._announce(channel, "join", member)

    async def leave(self, channel: str, member: Member) -> None:
        """A connection that joined, or was about to, is gone."""
        here = self._here.get((channel, member.client_id), [])
        if member not in here:
            return
        here.remove(member)
        if here:
            return
        del self._here[channel, member.client_id]
        await self._withdraw(channel, member.client_id)

    async def members(self, channel: str) -> list[Member]:
        """Everyone on a channel, in the order of arrival."""
        now = self._clock()
        found: list[Member] = []
        for key in await self._kv.keys(_key(channel, "")):
            value = await self._kv.get(key)
            if value is not None:
                entry = _decode(value)
                if max(entry.workers.values()) > now:
                    found.append(entry.member)
        found.sort(key=lambda member: (member.since, member.client_id))
        return found

    async def refresh(self) -> None:
        """Vouch again for those who are here, and tell that those left for whom nobody does."""
        for (channel, client_id), connections in list(self._here.items()):
            if (channel, client_id) in self._here and await self._vouch(channel, connections[0]):
                await self._announce(channel, "join", connections[0])
        now = self._clock()
        for key in await self._kv.keys(_PREFIX):
            value = await self._kv.get(key)
            if value is None:
                continue
            entry = _decode(value)
            if max(entry.workers.values()) <= now and await self._kv.compare_and_set(key, value, None, self._ttl):
                await self._announce(key.removeprefix(_PREFIX).partition(" ")[0], "leave", entry.member)

    async def leave_all(self) -> None:
        """This worker ends: nobody is here any more."""
        here, self._here = self._here, {}
        for channel, client_id in here:
            await self._withdraw(channel, client_id)

    async def _vouch(self, channel: str, member: Member) -> bool:
        """Enter this worker; True when nobody had told that the client is here."""
        key = _key(channel, member.client_id)
        while True:
            now = self._clock()
            old = await self._kv.get(key)
            entry = _Entry(member, {}) if old is None else _decode(old)
            entry.workers = {worker: until for worker, until in entry.workers.items() if until > now}
            entry.workers[self._worker] = now + self._ttl
            if await self._kv.compare_and_set(key, old, _encode(entry), self._ttl * _KEEP):
                return old is None

    async def _withdraw(self, channel: str, client_id: str) -> None:
        """Take this worker out; where no other one has the client, tell that it left, as whom its arrival was told."""
        key = _key(channel, client_id)
        while True:
            old = await self._kv.get(key)
            if old is None:
                return
            entry = _decode(old)
            if entry.workers.pop(self._worker, None) is None:
                return
            new = _encode(entry) if entry.workers else None
            if await self._kv.compare_and_set(key, old, new, self._ttl * _KEEP):
                break
        if new is None:
            await self._announce(channel, "leave", entry.member)


def _key(channel: str, client_id: str) -> str:
    return f"{_PREFIX}{channel} {client_id}"
