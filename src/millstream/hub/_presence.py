"""Presence: the clients with an id on each channel, across all workers.

Each channel is a member group in the store. A worker registers its connected clients there under its lease. If the
worker dies, the others report its clients as departed unless another worker has registered them. The store operation
that changes the group also appends the presence event, so each change is reported once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from millstream._stores.base import CoAppend, Position, Store
from millstream.hub._channels import owned_id

_GROUP = "presence:"
_LOCK_COUNT = 64

MakeEntry = Callable[[str, str, "Member"], CoAppend]
"""``make_entry(channel, "join" or "leave", member)`` returns the event to publish."""
WaitForDelivery = Callable[[Position], Awaitable[None]]
"""Waits until a published event is delivered on this worker."""


class Member(Struct, frozen=True, omit_defaults=True):
    """A client on a channel: ``[member.name for member in await mcp.hub.presence("den")]``."""

    client_id: str
    name: str = ""
    since: float = 0.0
    owner: str = ""
    """The principal that owns the client, so other principals can't impersonate it. Empty without a principal."""

    @property
    def key(self) -> str:
        """The unique key of the client."""
        return owned_id(self.client_id, self.owner)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode


class Presence:
    """The members of all channels, as registered by one worker."""

    def __init__(self, store: Store, make_entry: MakeEntry, wait_for_delivery: WaitForDelivery) -> None:
        # configuration
        self._log = store.log
        self._members = store.members
        self._workers = store.workers
        self._make_entry = make_entry
        self._wait_for_delivery = wait_for_delivery
        # process
        self._connections: dict[tuple[str, str], list[Member]] = {}
        """The connections to this worker by channel and client."""
        self._registered: dict[tuple[str, str], Member] = {}
        """Clients that this worker has registered."""
        self._worker_id = store.workers.me
        """The worker id of the registrations."""
        self._unreported: deque[tuple[str, str, bytes]] = deque()
        """Departed clients of dead workers that haven't been reported yet."""
        self._locks = [asyncio.Lock() for _ in range(_LOCK_COUNT)]
        """Locks that keep the changes of each client in order."""

    async def join(self, channel: str, member: Member) -> None:
        """Add a connection of a client to a channel."""
        connections = self._connections.setdefault((channel, member.key), [])
        connections.append(member)
        if len(connections) == 1:
            await self._update(channel, member.key)

    async def leave(self, channel: str, member: Member) -> None:
        """Remove a connection that has joined or is about to join."""
        connections = self._connections.get((channel, member.key), [])
        if member not in connections:
            return
        connections.remove(member)
        if not connections:
            del self._connections[channel, member.key]
            await self._update(channel, member.key)

    async def members(self, channel: str) -> list[Member]:
        """Return all clients on a channel, in order of arrival."""
        members = [_decode(value) for _, value in await self._members.present(_GROUP + channel)]
        members.sort(key=lambda member: (member.since, member.client_id))
        return members

    async def refresh(self) -> None:
        """Retry failed operations, and report the clients of dead workers as departed.

        If this worker was considered dead, register its clients again under its new id.
        """
        if self._worker_id != self._workers.me:
            self._worker_id = self._workers.me
            self._registered.clear()
        await self._update_all()
        self._unreported += await self._members.remove_abandoned()
        while self._unreported:
            group, _, value = self._unreported[0]
            entry = self._make_entry(group.removeprefix(_GROUP), "leave", _decode(value))
            position = await self._log.append(entry.stream, entry.data, ttl=entry.ttl, max_entries=entry.max_entries)
            self._unreported.popleft()
            await self._wait_for_delivery(position)

    async def leave_all(self) -> None:
        """Remove all clients of this worker, because it's shutting down."""
        self._connections.clear()
        await self._update_all()

    async def _update_all(self) -> None:
        for channel, client_id in self._connections.keys() ^ self._registered.keys():
            await self._update(channel, client_id)

    async def _update(self, channel: str, client_id: str) -> None:
        """Register a client if it's connected, and unregister it otherwise."""
        key = (channel, client_id)
        async with self._locks[hash(key) % _LOCK_COUNT]:
            connections, registered = self._connections.get(key), self._registered.get(key)
            if connections and registered is None:
                member = connections[0]
                value, position = await self._members.join(
                    _GROUP + channel, client_id, _encode(member), self._make_entry(channel, "join", member)
                )
                self._registered[key] = _decode(value)
            elif registered is not None and not connections:
                entry = self._make_entry(channel, "leave", registered)
                position = await self._members.leave(_GROUP + channel, client_id, entry)
                del self._registered[key]
            else:
                return
        if position is not None:
            await self._wait_for_delivery(position)
