"""How far each client has been served, so that a mailbox gives nothing twice.

The messages are the history of the client's channel (`journal`). Here is only the place up to which they were
written to one of its connections: the present end while it is connected to this worker, and in the store, for its
next connection to any worker. It is saved after every message that was written, several at once where they come fast,
so a worker that dies repeats at most the last of them. What was written to a connection that broke is had again by
resuming with an id, which knows better than this what the client got.

Messages may be gone before the client comes, all of them even, and then nothing in the log tells of them. So the
oldest message that was sent while it was away is noted beside, for longer than messages are kept: the debt. A client
that can't be given that message gets a `gap`.

Any client can make up ids, so what is written here is lossy: a flood of them drives out the oldest of its own kind
and keeps nothing else out of the store.
"""

import asyncio
import logging
from itertools import islice

import msgspec
from msgspec import Struct

from millstream._stores.base import Map, Store
from millstream._stores.health import LogOnce
from millstream._stores.tail import PAUSE
from millstream.hub._channels import CLIENT
from millstream.hub._event import parse_offset, position_id
from millstream.hub._journal import Journal
from millstream.hub._limits import HubLimits

_SEEN = "seen:"
_DEBT = "debt:"
_KEEP = 4
"""Lifetimes of a message for which debts and places are kept."""
_AT_ONCE = 64

_logger = logging.getLogger("millstream.hub")


class Debt(Struct, frozen=True, array_like=True):
    """The oldest message that a client was not written, as far as is known."""

    place: str
    at: float
    """When it was sent, in the clock of its sender."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Debt).decode


class Mailboxes:
    """The cursors of the clients, and what they are owed."""

    __slots__ = ("_journal", "_kv", "_limits", "_online", "_unsaved", "unsaved")

    def __init__(self, store: Store, journal: Journal, limits: HubLimits) -> None:
        self._kv: Map = store.kv
        self._journal = journal
        self._limits = limits
        self._online: dict[str, int] = {}
        self._unsaved: dict[str, int] = {}
        """Clients that were served or have left, and how far they were served, until it is in the store."""
        self.unsaved = asyncio.Event()
        """There is something to `save`."""

    async def read_offset(self, client_id: str) -> int:
        """The offset up to which the client was served."""
        if client_id in self._online:
            return self._journal.offset
        unsaved = self._unsaved.get(client_id)
        if unsaved is not None:
            return unsaved
        saved = await self._kv.get(_SEEN + client_id)
        return parse_offset(saved.decode(), self._journal.epoch) if saved is not None else 0

    async def record_debt(self, client_id: str, place: str, at: float) -> None:
        """A message was sent, and the client is not connected to this worker. An older debt stands, unless it was paid:
        the client may be connected to another worker.
        """
        kv, ttl, epoch = self._kv, self._limits.mailbox_age * _KEEP, self._journal.epoch
        debt = _encode(Debt(place, at))
        if await kv.compare_and_set(_DEBT + client_id, None, debt, ttl, lossy=True):
            return
        old, seen = await kv.get_many([_DEBT + client_id, _SEEN + client_id])
        if old is None or (
            seen is not None and parse_offset(_decode(old).place, epoch) <= parse_offset(seen.decode(), epoch)
        ):
            await kv.compare_and_set(_DEBT + client_id, old, debt, ttl, lossy=True)

    async def debt(self, client_id: str) -> tuple[int, float]:
        """Offset and time of the oldest message that the client was not written; 0 when there is none."""
        saved = await self._kv.get(_DEBT + client_id)
        if saved is None:
            return 0, 0.0
        debt = _decode(saved)
        return parse_offset(debt.place, self._journal.epoch), debt.at

    def client_arrived(self, client_id: str, *, served: bool) -> None:
        """A connection of the client has caught up; `served` says whether messages were written to it."""
        self._online[client_id] = self._online.get(client_id, 0) + 1
        if served:
            self._owe_place(client_id)

    def client_left(self, client_id: str) -> None:
        """A connection that had caught up is gone."""
        self._online[client_id] -= 1
        if not self._online[client_id]:
            del self._online[client_id]
            self._owe_place(client_id)

    def mark_delivered(self, client_id: str) -> None:
        """A message of the client's was written to those of its connections that are here."""
        if client_id in self._online:
            self._owe_place(client_id)

    def _owe_place(self, client_id: str) -> None:
        self._unsaved[client_id] = self._journal.offset
        self.unsaved.set()

    async def save(self) -> None:
        """Write down how far they were served."""
        self.unsaved.clear()
        while batch := list(islice(self._unsaved.items(), _AT_ONCE)):
            await asyncio.gather(*(self._put(client_id, offset) for client_id, offset in batch))
            for client_id, offset in batch:
                if self._unsaved.get(client_id) == offset:
                    del self._unsaved[client_id]

    async def keep_saved(self) -> None:
        """Save what there is to save, until cancelled. A store that fails is asked again."""
        trouble = LogOnce(
            _logger,
            "The hub can't save how far clients were served, which is tried again",
            "The hub saves again how far clients were served.",
        )
        while True:
            await self.unsaved.wait()
            with trouble:
                await self.save()
            if self._unsaved:
                await asyncio.sleep(PAUSE)
                self.unsaved.set()

    async def _put(self, client_id: str, offset: int) -> None:
        place = position_id(self._journal.epoch, offset).encode()
        if client_id in self._online:  # it was just written a message, so it has a history
            await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age * _KEEP, lossy=True)
            return
        debt = await self._kv.get(_DEBT + client_id)
        if debt is not None and parse_offset(_decode(debt).place, self._journal.epoch) <= offset:
            # Unless another worker has changed it.
            await self._kv.compare_and_set(_DEBT + client_id, debt, None, self._limits.mailbox_age)
        if not await self._journal.has_history(CLIENT + client_id):
            return  # nothing was ever sent to it: made-up client ids leave nothing behind
        await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age * _KEEP, lossy=True)
