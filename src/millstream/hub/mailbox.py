"""How far each client has been served, so that a mailbox gives nothing twice.

The messages are the history of the client's channel (`journal`). Here is only the place up to which they were
written to one of its connections: the present end while it is connected to this worker, and in the store, for its
next connection to any worker, once it has left. What was written to a connection that broke is had again by
resuming with an id, which knows better than this what the client got.
"""

from millstream.hub.channels import CLIENT
from millstream.hub.event import parse_position, position_id
from millstream.hub.journal import Journal
from millstream.hub.limits import HubLimits
from millstream.stores.base import KeyValue

_SEEN = "hub:seen:"


class Mailboxes:
    """The cursors of the clients."""

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
        return (parse_position(saved.decode(), self._journal.epoch) or 0) if saved is not None else 0

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
        if not await self._journal.has_history(CLIENT + client_id):
            return  # nothing was ever sent to it: whoever makes up client ids leaves nothing behind
        place = position_id(self._journal.epoch, offset).encode()
        await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age)
