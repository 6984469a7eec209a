"""How far each client has been served, so that a mailbox gives nothing twice.

The messages are the history of the client's channel (`journal`). Here is only the place up to which they were
written to one of its connections: the present end while it is connected to this worker, and in the store, for its
next connection to any worker, once it has left. What was written to a connection that broke is had again by
resuming with an id, which knows better than this what the client got.

Messages may be gone before the client comes, all of them even, and then nothing in the log tells of them. So the
oldest message that was sent while it was away is noted beside, for longer than messages are kept: the debt. A client
to whom that message cannot be given gets a `gap`.

Anybody can make up client ids, so what is written here is lossy: a flood of them drives out the oldest of its own kind
and keeps nothing else out of the store.
"""

import msgspec
from msgspec import Struct

from millstream.hub.channels import CLIENT
from millstream.hub.event import parse_offset, position_id
from millstream.hub.journal import Journal
from millstream.hub.limits import HubLimits
from millstream.stores.base import KeyValue

_SEEN = "seen:"
_DEBT = "debt:"
_KEEP = 4
"""Lifetimes of a message for which the debt is kept."""


class Debt(Struct, frozen=True, array_like=True):
    """The oldest message that a client was not written, as far as is known."""

    place: str
    at: float
    """When it was sent, in the clock of its sender."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Debt).decode


class Mailboxes:
    """The cursors of the clients, and what they are owed."""

    __slots__ = ("_journal", "_kv", "_limits", "_online", "_unsaved")

    def __init__(self, kv: KeyValue, journal: Journal, limits: HubLimits) -> None:
        self._kv = kv
        self._journal = journal
        self._limits = limits
        self._online: dict[str, int] = {}
        self._unsaved: dict[str, int] = {}
        """Clients that have left, and how far they were served, until it is in the store."""

    async def seen(self, client_id: str) -> int:
        """The offset up to which the client was served."""
        if client_id in self._online:
            return self._journal.offset
        unsaved = self._unsaved.get(client_id)
        if unsaved is not None:
            return unsaved
        saved = await self._kv.get(_SEEN + client_id)
        return parse_offset(saved.decode(), self._journal.epoch) if saved is not None else 0

    async def owe(self, client_id: str, offset: int, at: float) -> None:
        """A message was sent, and the client is not connected to this worker. An older debt stands."""
        debt = _encode(Debt(position_id(self._journal.epoch, offset), at))
        await self._kv.compare_and_set(_DEBT + client_id, None, debt, self._limits.mailbox_age * _KEEP, lossy=True)

    async def owed(self, client_id: str) -> tuple[int, float]:
        """Offset and time of the oldest message that the client was not written; 0 when there is none."""
        saved = await self._kv.get(_DEBT + client_id)
        if saved is None:
            return 0, 0.0
        debt = _decode(saved)
        return parse_offset(debt.place, self._journal.epoch), debt.at

    def arrived(self, client_id: str) -> None:
        """A connection of the client has caught up."""
        self._online[client_id] = self._online.get(client_id, 0) + 1

    def left(self, client_id: str) -> None:
        """A connection that had caught up is gone."""
        self._online[client_id] -= 1
        if not self._online[client_id]:
            del self._online[client_id]
            self._unsaved[client_id] = self._journal.offset

    async def save(self) -> None:
        """Write down how far those were served who left."""
        while self._unsaved:
            client_id, offset = next(iter(self._unsaved.items()))
            await self._put(client_id, offset)
            if self._unsaved.get(client_id) == offset:
                del self._unsaved[client_id]

    async def save_online(self) -> None:
        """The same for those who are here, in case that this worker dies."""
        for client_id in list(self._online):
            await self._put(client_id, self._journal.offset)

    async def _put(self, client_id: str, offset: int) -> None:
        debt = await self._kv.get(_DEBT + client_id)
        if debt is not None and parse_offset(_decode(debt).place, self._journal.epoch) <= offset:
            # Unless another worker has changed it meanwhile.
            await self._kv.compare_and_set(_DEBT + client_id, debt, None, self._limits.mailbox_age)
        if not await self._journal.has_history(CLIENT + client_id):
            return  # nothing was ever sent to it: whoever makes up client ids leaves nothing behind
        place = position_id(self._journal.epoch, offset).encode()
        await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age, lossy=True)
