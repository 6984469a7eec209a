"""Presence: the clients with an id on each channel, over all workers.

Each channel is a group of the store's members. A worker registers each connected client there under its lease. If the
worker dies, the others report its clients as departed, unless another worker has registered them. The operation that
changes the group also returns the arrivals and departures, so each is reported once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from msgspec import Struct

from millstream._stores.base import CoAppend, Position, Store
from millstream.hub._channels import owned_id

_GROUP: Final = "presence:"
_LOCKS: Final = 64

Tell = Callable[[str, str, "Member"], CoAppend]
"""``tell(channel, "join" or "leave", member)`` returns the event to publish."""
Reach = Callable[[Position], Awaitable[None]]
"""Waits until a published event is delivered on this worker."""


class Member(Struct, frozen=True, omit_defaults=True):
    """A client on a channel: ``[member.name for member in await mcp.hub.presence("den")]``."""

    client_id: str
    name: str = ""
    since: float = 0.0
    owner: str = ""
    """The principal that owns the client, so other principals can't appear as the same client. Empty without one."""

    @property
    def key(self) -> str:
        """The unique key of the client."""
        return owned_id(self.client_id, self.owner)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode


class Presence:
    """The members of all channels, as registered by one worker."""

    __slots__ = (
        "_abandoned", "_here", "_locks", "_log", "_members", "_name", "_reach", "_tell", "_vouched", "_workers",
    )  # fmt: skip

    def __init__(self, store: Store, tell: Tell, reach: Reach) -> None:
        # configuration
        self._log = store.log
        self._members = store.members
        self._workers = store.workers
        self._tell = tell
        self._reach = reach
        # process
        self._here: dict[tuple[str, str], list[Member]] = {}
        """The connections of each client to this worker, by channel."""
        self._vouched: dict[tuple[str, str], Member] = {}
        """Clients that this worker has registered, as announced on arrival."""
        self._name = store.workers.me
        """The name that this worker registers them under."""
        self._abandoned: deque[tuple[str, str, bytes]] = deque()
        """Departed clients of dead workers that this worker must report."""
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]
        """Locks that keep the changes of one client in order."""

    async def join(self, channel: str, member: Member) -> None:
        """Add a connection of a client to a channel."""
        here = self._here.setdefault((channel, member.key), [])
        here.append(member)
        if len(here) == 1:
            await self._settle(channel, member.key)

    async def leave(self, channel: str, member: Member) -> None:
        """Remove a connection that joined or was about to join."""
        here = self._here.get((channel, member.key), [])
        if member not in here:
            return
        here.remove(member)
        if not here:
            del self._here[channel, member.key]
            await self._settle(channel, member.key)

    async def members(self, channel: str) -> list[Member]:
        """Return all clients on a channel, in order of arrival."""
        found = [_decode(value) for _, value in await self._members.present(_GROUP + channel)]
        found.sort(key=lambda member: (member.since, member.client_id))
        return found

    async def refresh(self) -> None:
        """Repeat failed operations, and report the clients of dead workers as departed.

        If the other workers considered this one dead, register all of its clients again under its new name.
        """
        if self._name != self._workers.me:
            self._name = self._workers.me
            self._vouched.clear()
        await self._settle_all()
        self._abandoned += await self._members.remove_abandoned()
        while self._abandoned:
            group, _, value = self._abandoned[0]
            told = self._tell(group.removeprefix(_GROUP), "leave", _decode(value))
            place = await self._log.append(told.stream, told.data, ttl=told.ttl, max_entries=told.max_entries)
            self._abandoned.popleft()
            await self._reach(place)

    async def leave_all(self) -> None:
        """Remove all clients of this worker, because it's shutting down."""
        self._here.clear()
        await self._settle_all()

    async def _settle_all(self) -> None:
        for channel, client_id in self._here.keys() ^ self._vouched.keys():
            await self._settle(channel, client_id)

    async def _settle(self, channel: str, client_id: str) -> None:
        """Register a client if it's connected, and unregister it otherwise."""
        key = (channel, client_id)
        async with self._locks[hash(key) % _LOCKS]:
            here, vouched = self._here.get(key), self._vouched.get(key)
            if here and vouched is None:
                member = here[0]
                value, told = await self._members.join(
                    _GROUP + channel, client_id, _encode(member), self._tell(channel, "join", member)
                )
                self._vouched[key] = _decode(value)
            elif vouched is not None and not here:
                told = await self._members.leave(_GROUP + channel, client_id, self._tell(channel, "leave", vouched))
                del self._vouched[key]
            else:
                return
        if told is not None:
            await self._reach(told)
