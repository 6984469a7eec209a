"""The progress of each client through its mailbox, so that a message isn't delivered twice.

The messages are the history of the client's channel (see `journal`). This module stores only the offset of the last
message written to a connection: in memory while the client is connected to this worker, and in the store for its next
connection to any worker. The offset is saved after each message, in batches under load, so only the last messages may
be repeated after a worker crashes. If a connection breaks, the client resumes from an event id, which is more exact.

Messages can expire before the client returns, leaving no trace in the log. So the oldest undelivered message is
recorded separately and kept longer than the messages. A client that can't get that message receives a `gap`.

Clients choose their ids, so these records are lossy: a flood of ids evicts only other records of the same kind.
"""

import asyncio
import logging
from itertools import islice

import msgspec
from msgspec import Struct

from millstream._protocol.principal import Share
from millstream._stores.base import Map, Store
from millstream._stores.health import LogOnce, run_on
from millstream.hub._channels import CLIENT, HubLimits
from millstream.hub._event import parse_offset, position_id
from millstream.hub._journal import Journal

_OFFSET_KEY = "seen:"
_UNDELIVERED_KEY = "debt:"
_TTL_FACTOR = 4
"""How much longer these records are kept than messages."""
_BATCH_SIZE = 64

_logger = logging.getLogger("millstream.hub")


class UndeliveredMessage(Struct, frozen=True, array_like=True):
    """The oldest message that may not have been delivered to a client."""

    place: str
    at: float
    """Time of sending, by the sender's clock."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(UndeliveredMessage).decode


class Mailboxes:
    """The offsets and undelivered messages of clients."""

    def __init__(self, store: Store, journal: Journal, limits: HubLimits) -> None:
        self._kv: Map = store.kv
        self._journal = journal
        self._limits = limits
        self._online = Share()
        """Connections of each client that have caught up."""
        self._unsaved_offsets: dict[str, int] = {}
        """Offsets of clients that aren't saved yet."""
        self.save_needed = asyncio.Event()
        """Set when `save` has work to do."""

    async def read_offset(self, client_id: str) -> int:
        """Return the offset of the last message that was written to the client."""
        if self._online.count(client_id):
            return self._journal.offset
        unsaved = self._unsaved_offsets.get(client_id)
        if unsaved is not None:
            return unsaved
        saved = await self._kv.get(_OFFSET_KEY + client_id)
        return parse_offset(saved.decode(), self._journal.epoch) if saved is not None else 0

    async def record_undelivered(self, client_id: str, place: str, at: float) -> None:
        """Record a message for a client that isn't connected to this worker. An older record is kept unless its message
        was delivered, possibly by another worker.
        """
        kv, ttl, epoch = self._kv, self._limits.mailbox_age * _TTL_FACTOR, self._journal.epoch
        record = _encode(UndeliveredMessage(place, at))
        if await kv.compare_and_set(_UNDELIVERED_KEY + client_id, None, record, ttl, lossy=True):
            return
        old, seen = await kv.get_many([_UNDELIVERED_KEY + client_id, _OFFSET_KEY + client_id])
        if old is None or (
            seen is not None and parse_offset(_decode(old).place, epoch) <= parse_offset(seen.decode(), epoch)
        ):
            await kv.compare_and_set(_UNDELIVERED_KEY + client_id, old, record, ttl, lossy=True)

    async def oldest_undelivered(self, client_id: str) -> tuple[int, float]:
        """Return the offset and time of the oldest undelivered message, or zeros."""
        saved = await self._kv.get(_UNDELIVERED_KEY + client_id)
        if saved is None:
            return 0, 0.0
        record = _decode(saved)
        return parse_offset(record.place, self._journal.epoch), record.at

    def client_arrived(self, client_id: str, *, served: bool) -> None:
        """Record a connection that has caught up. `served` says whether messages were written to it."""
        self._online.take(client_id)
        if served:
            self._mark_unsaved(client_id)

    def client_left(self, client_id: str) -> None:
        """Record the end of a connection that had caught up."""
        self._online.leave(client_id)
        if not self._online.count(client_id):
            self._mark_unsaved(client_id)

    def mark_delivered(self, client_id: str) -> None:
        """Record that a message was written to the client's connections on this worker."""
        if self._online.count(client_id):
            self._mark_unsaved(client_id)

    def _mark_unsaved(self, client_id: str) -> None:
        self._unsaved_offsets[client_id] = self._journal.offset
        self.save_needed.set()

    async def save(self) -> None:
        """Save all unsaved offsets."""
        self.save_needed.clear()
        while batch := list(islice(self._unsaved_offsets.items(), _BATCH_SIZE)):
            await asyncio.gather(*(self._save_offset(client_id, offset) for client_id, offset in batch))
            for client_id, offset in batch:
                if self._unsaved_offsets.get(client_id) == offset:
                    del self._unsaved_offsets[client_id]

    async def run_saves(self) -> None:
        """Save pending offsets until canceled. Retry when the store fails."""
        outage = LogOnce(
            _logger,
            "The hub can't save the mailbox positions of clients; retrying",
            "The hub can save the mailbox positions of clients again.",
        )
        await run_on(self.save_needed, self.save, outage)

    async def _save_offset(self, client_id: str, offset: int) -> None:
        place = position_id(self._journal.epoch, offset).encode()
        if self._online.count(client_id):  # it just received a message, so it has a history
            await self._kv.put(_OFFSET_KEY + client_id, place, self._limits.mailbox_age * _TTL_FACTOR, lossy=True)
            return
        record = await self._kv.get(_UNDELIVERED_KEY + client_id)
        if record is not None and parse_offset(_decode(record).place, self._journal.epoch) <= offset:
            # The record stays if another worker has changed it.
            await self._kv.compare_and_set(_UNDELIVERED_KEY + client_id, record, None, self._limits.mailbox_age)
        if not await self._journal.has_history(CLIENT + client_id):
            return  # made-up client ids must not leave records
        await self._kv.put(_OFFSET_KEY + client_id, place, self._limits.mailbox_age * _TTL_FACTOR, lossy=True)
