"""The progress of each client through its mailbox, so that a message isn't delivered twice.

The messages are the history of the client's channel (see `journal`). This module stores only the offset up to which
they were written to a connection: in memory while the client is connected to this worker, and in the store for its next
connection to any worker. The offset is saved after each written message, in batches under load, so after a worker's
death only the last messages may be repeated. If a connection breaks, the client resumes with an event id, which is more
exact.

Messages can expire before the client returns, leaving no trace in the log. So the debt, the oldest message sent while
the client was offline, is recorded separately and kept for longer than messages. A client that can't get that message
receives a `gap`.

Client ids are chosen by clients, so these records are lossy: a flood of them only evicts the oldest records of its
kind.
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
"""Debts and offsets are kept for this multiple of a message's lifetime."""
_AT_ONCE = 64

_logger = logging.getLogger("millstream.hub")


class Debt(Struct, frozen=True, array_like=True):
    """The oldest message that a client hasn't received, as far as is known."""

    place: str
    at: float
    """Time at which it was sent, by the sender's clock."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Debt).decode


class Mailboxes:
    """The offsets and debts of clients."""

    __slots__ = ("_journal", "_kv", "_limits", "_online", "_unsaved", "unsaved")

    def __init__(self, store: Store, journal: Journal, limits: HubLimits) -> None:
        self._kv: Map = store.kv
        self._journal = journal
        self._limits = limits
        self._online: dict[str, int] = {}
        self._unsaved: dict[str, int] = {}
        """Clients that were served or have left -> their offset, until it's saved."""
        self.unsaved = asyncio.Event()
        """Set when there is something to `save`."""

    async def read_offset(self, client_id: str) -> int:
        """Return the offset up to which the client was served."""
        if client_id in self._online:
            return self._journal.offset
        unsaved = self._unsaved.get(client_id)
        if unsaved is not None:
            return unsaved
        saved = await self._kv.get(_SEEN + client_id)
        return parse_offset(saved.decode(), self._journal.epoch) if saved is not None else 0

    async def record_debt(self, client_id: str, place: str, at: float) -> None:
        """Record a message for a client that isn't connected to this worker. An older debt is kept unless it was paid,
        because the client may be connected to another worker.
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
        """Return the offset and time of the oldest message that the client hasn't received, or 0."""
        saved = await self._kv.get(_DEBT + client_id)
        if saved is None:
            return 0, 0.0
        debt = _decode(saved)
        return parse_offset(debt.place, self._journal.epoch), debt.at

    def client_arrived(self, client_id: str, *, served: bool) -> None:
        """Record a connection that has caught up. `served` is whether messages were written to it."""
        self._online[client_id] = self._online.get(client_id, 0) + 1
        if served:
            self._owe_place(client_id)

    def client_left(self, client_id: str) -> None:
        """Record the end of a connection that had caught up."""
        self._online[client_id] -= 1
        if not self._online[client_id]:
            del self._online[client_id]
            self._owe_place(client_id)

    def mark_delivered(self, client_id: str) -> None:
        """Record that a message was written to the client's connections on this worker."""
        if client_id in self._online:
            self._owe_place(client_id)

    def _owe_place(self, client_id: str) -> None:
        self._unsaved[client_id] = self._journal.offset
        self.unsaved.set()

    async def save(self) -> None:
        """Save the offsets of served clients."""
        self.unsaved.clear()
        while batch := list(islice(self._unsaved.items(), _AT_ONCE)):
            await asyncio.gather(*(self._put(client_id, offset) for client_id, offset in batch))
            for client_id, offset in batch:
                if self._unsaved.get(client_id) == offset:
                    del self._unsaved[client_id]

    async def keep_saved(self) -> None:
        """Save pending offsets until cancelled. Retry when the store fails."""
        trouble = LogOnce(
            _logger,
            "The hub can't save the mailbox positions of clients; retrying",
            "The hub can save the mailbox positions of clients again.",
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
        if client_id in self._online:  # it just received a message, so it has a history
            await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age * _KEEP, lossy=True)
            return
        debt = await self._kv.get(_DEBT + client_id)
        if debt is not None and parse_offset(_decode(debt).place, self._journal.epoch) <= offset:
            # The record stays if another worker has changed it.
            await self._kv.compare_and_set(_DEBT + client_id, debt, None, self._limits.mailbox_age)
        if not await self._journal.has_history(CLIENT + client_id):
            return  # invented client ids must not leave records
        await self._kv.put(_SEEN + client_id, place, self._limits.mailbox_age * _KEEP, lossy=True)
