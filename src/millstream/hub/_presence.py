"""Who is on a channel: the clients that gave an id, on all workers.

Each channel is a group of the store's members. This worker vouches there for each client that it has a connection of,
with its lease: when it dies, the others tell that those left whom nobody else vouches for. The operation
that changes the group also says who came and who left, so each goes out once.
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
"""``tell(channel, "join" or "leave", member)`` makes the event that goes out."""
Reach = Callable[[Position], Awaitable[None]]
"""Waits until an event that went out is delivered here."""


class Member(Struct, frozen=True, omit_defaults=True):
    """A client on a channel. ``[member.name for member in await mcp.hub.presence("den")]``"""

    client_id: str
    name: str = ""
    since: float = 0.0
    owner: str = ""
    """Stands for the principal whose client it is, so that nobody else can appear as the same; empty without one."""

    @property
    def key(self) -> str:
        """What tells it from every other client."""
        return owned_id(self.client_id, self.owner)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Member).decode


class Presence:
    """The members of all channels, as one worker keeps them."""

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
        """The connections of each client on each channel to this worker."""
        self._vouched: dict[tuple[str, str], Member] = {}
        """Those for whom it vouches, as their arrival said."""
        self._name = store.workers.me
        """The name under which it does."""
        self._abandoned: deque[tuple[str, str, bytes]] = deque()
        """Those that this worker has to tell: they left with a worker that died."""
        self._locks = [asyncio.Lock() for _ in range(_LOCKS)]
        """What happens to one client happens in order."""

    async def join(self, channel: str, member: Member) -> None:
        """A connection of a client joins a channel."""
        here = self._here.setdefault((channel, member.key), [])
        here.append(member)
        if len(here) == 1:
            await self._settle(channel, member.key)

    async def leave(self, channel: str, member: Member) -> None:
        """A connection that joined, or was about to, is gone."""
        here = self._here.get((channel, member.key), [])
        if member not in here:
            return
        here.remove(member)
        if not here:
            del self._here[channel, member.key]
            await self._settle(channel, member.key)

    async def members(self, channel: str) -> list[Member]:
        """Everyone on a channel, in the order of arrival."""
        found = [_decode(value) for _, value in await self._members.present(_GROUP + channel)]
        found.sort(key=lambda member: (member.since, member.client_id))
        return found

    async def refresh(self) -> None:
        """Make up for what the store didn't take, and tell that those left whose workers died.

        Where the others gave this worker up meanwhile, it vouches again for everyone here, under its new name.
        """
        if self._name != self._workers.me:
            self._name = self._workers.me
            self._vouched.clear()
        await self._settle_all()
        self._abandoned += await self._members.abandoned()
        while self._abandoned:
            group, _, value = self._abandoned[0]
            told = self._tell(group.removeprefix(_GROUP), "leave", _decode(value))
            place = await self._log.append(told.stream, told.data, ttl=told.ttl, max_entries=told.max_entries)
            self._abandoned.popleft()
            await self._reach(place)

    async def leave_all(self) -> None:
        """This worker ends: nobody is here any more."""
        self._here.clear()
        await self._settle_all()

    async def _settle_all(self) -> None:
        for channel, client_id in self._here.keys() ^ self._vouched.keys():
            await self._settle(channel, client_id)

    async def _settle(self, channel: str, client_id: str) -> None:
        """Vouch for a client that is here, and not for one that is not."""
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
