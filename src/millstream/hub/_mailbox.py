"""Readers with positions in the store: clients with a mailbox, and programs that listen under a name.

A client's messages are the history of its channel (see `_journal`). Only the offset of the last message written to a
connection is stored: in memory while the client is connected to this worker, and in the store for its next connection
to any worker. The offset is saved after each message, in batches under load, so only the last messages may be repeated
after a worker crashes. If a connection breaks, the client resumes from an event id, which is more precise.

Messages can expire before the client reconnects, leaving no trace in the log. So the oldest undelivered message is
recorded separately and kept longer than the messages. If that message has expired, the client receives a `gap`.

Clients choose their ids, so these records are lossy: a flood of ids evicts only records of the same kind and owner.

The worker with the lease for a name reads its events, from the position in the store. The position is saved by
compare-and-set after each event, so a worker that lost its lease can't move it.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from itertools import islice

import msgspec
from msgspec import Struct, field

from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Share
from millstream._stores.base import Entry, Gap, Map, Position, read_offset
from millstream._stores.rates import share_for
from millstream._stores.store import Store
from millstream._stores.workers import Claim
from millstream._tasks import cancel_all
from millstream._troubles import LogOnce, Troubles, run_on
from millstream.hub._channels import CLIENT, HubLimits, InvalidName, check_pattern, matches, topic_for
from millstream.hub._event import Event, parse_offset, position_id, unpack
from millstream.hub._journal import JOURNAL, Journal

_TTL_FACTOR = 4
"""Factor by which these records are kept longer than messages."""
_BATCH_SIZE = 64

logger = logging.getLogger("millstream.hub")


def _key(kind: str, client_id: str) -> str:
    """Return the key of a client's record. Ids of anonymous clients, which can be any text, have no share."""
    owner, slash, name = client_id.rpartition("/")
    return f"{kind}:{share_for(owner)}.{name}" if slash else f"{kind}:/{name}"


class UndeliveredMessage(Struct, frozen=True, array_like=True):
    """The oldest message that may not have been delivered to a client."""

    place: str
    at: float
    """Time of sending, by the sender's clock."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(UndeliveredMessage).decode


class Mailboxes(Struct):
    """The offsets and undelivered messages of clients."""

    _kv: Map
    _troubles: Troubles
    _journal: Journal
    _limits: HubLimits
    _online: Share = field(default_factory=Share)
    """Connections of each client that have caught up."""
    _unsaved_offsets: dict[str, int] = {}
    """Offsets of clients that aren't saved yet."""
    save_needed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `save` has work to do."""

    async def read_offset(self, client_id: str) -> int:
        """Return the offset of the last message that was written to the client."""
        if self._online.count(client_id):
            return self._journal.offset
        unsaved = self._unsaved_offsets.get(client_id)
        if unsaved is not None:
            return unsaved
        new, old = await self._kv.get_many([_key("seen", client_id), f"seen:{client_id}"])  # `old`: by older versions
        saved = new or old
        return parse_offset(saved.decode(), self._journal.epoch) if saved is not None else 0

    async def record_undelivered(self, client_id: str, place: str, at: float) -> None:
        """Record a message for a client that isn't connected to this worker. An older record is kept unless its message
        was delivered, possibly by another worker.
        """
        kv, ttl, epoch = self._kv, self._limits.mailbox_age * _TTL_FACTOR, self._journal.epoch
        record = _encode(UndeliveredMessage(place, at))
        if await kv.compare_and_set(_key("debt", client_id), None, record, ttl, lossy=True):
            return
        old, seen = await kv.get_many([_key("debt", client_id), _key("seen", client_id)])
        if old is None or (
            seen is not None and parse_offset(_decode(old).place, epoch) <= parse_offset(seen.decode(), epoch)
        ):
            await kv.compare_and_set(_key("debt", client_id), old, record, ttl, lossy=True)

    async def oldest_undelivered(self, client_id: str) -> tuple[int, float]:
        """Return the offset and time of the oldest undelivered message, or zeros."""
        saved = await self._kv.get(_key("debt", client_id))
        if saved is None:
            return 0, 0.0
        record = _decode(saved)
        return parse_offset(record.place, self._journal.epoch), record.at

    def client_arrived(self, client_id: str, *, served: bool) -> None:
        """Record a connection that has caught up. `served` is whether messages were written to it."""
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
            self._troubles,
            "The hub can't save the mailbox positions of clients; retrying",
            "The hub can save the mailbox positions of clients again.",
        )
        await run_on(self.save_needed, self.save, outage)

    async def _save_offset(self, client_id: str, offset: int) -> None:
        if not self._online.count(client_id):  # otherwise the client just received a message, so it has a history
            record = await self._kv.get(_key("debt", client_id))
            if record is not None and parse_offset(_decode(record).place, self._journal.epoch) <= offset:
                # The record stays if another worker has changed it.
                await self._kv.compare_and_set(_key("debt", client_id), record, None, self._limits.mailbox_age)
            if not await self._journal.history(CLIENT + client_id, 1):
                return  # made-up client ids must not leave records
        place = position_id(self._journal.epoch, offset).encode()
        await self._kv.put(_key("seen", client_id), place, self._limits.mailbox_age * _TTL_FACTOR, lossy=True)


_PAGE = 100
_POSITION_TTL = 30 * 86400.0
_LEASE = 9.0
"""Seconds after which another worker takes over a name if its reader has died. Renewed three times as often."""
_RETRY = 1.0
"""Seconds between attempts while the store doesn't respond."""


class EventListener:
    """The events of a pattern."""

    _saved: bytes | None = None
    """The saved position."""
    _completed: bytes | None = None
    """The position to save. It differs from `_saved` while it's being saved."""
    _listens = False
    """Whether the store reports every append."""

    def __init__(self, store: Store, pattern: str, name: str, is_open: Callable[[], bool]) -> None:
        """See `Hub.listen` for arguments and errors. The iteration ends when `is_open` returns False."""
        check_pattern(pattern)
        if pattern.startswith("$"):
            raise InvalidName(f"Channels that start with $ are reserved for the hub: {pattern!r}.")
        self._store = store
        self._pattern = pattern
        self._shared = bool(name)
        self._is_open = is_open
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        self._claim = Claim(store.kv, f"listener:lease.{digest}", _LEASE)
        self._position_key = f"listener:position.{digest}"
        self._holds = not name
        """Whether this listener can read: always without a name, otherwise while it has the lease."""
        self._wakeup = asyncio.Event()
        self._outage = LogOnce(
            store.troubles,
            f"Events on {pattern!r} can't be read; retrying",
            f"Events on {pattern!r} can be read again.",
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events. One is done when the next is requested."""
        stop = self._store.log.listen(
            JOURNAL, lambda _: self._wakeup.set(), interrupted=self._wakeup.set, topic=topic_for(self._pattern)
        )
        renewing = asyncio.create_task(self._renew()) if self._shared else None
        try:
            while self._is_open():
                page: Sequence[Entry] = []
                with self._outage:
                    self._wakeup.clear()
                    page = await self._read() if self._holds else []
                if not page:
                    await self._wait()
                for entry in page:
                    event = unpack(entry)
                    if matches(self._pattern, event.channel):
                        if not self._holds:
                            break
                        yield event
                    elif entry is not page[-1]:
                        continue
                    if not await self._save(entry.position):
                        break  # another worker continues reading
        finally:
            stop()
            await cancel_all(renewing)
            if self._shared:
                with suppress(LocalError, OSError):
                    if self._completed != self._saved:  # canceled in `_save`
                        await self._swap()
                    await self._claim.leave()

    async def _read(self) -> Sequence[Entry]:
        if not self._listens:
            await self._store.log.wait_until_listening(JOURNAL)
            self._listens = True
        if self._shared:
            self._saved = self._completed = await self._store.kv.get(self._position_key)
        if self._saved is None:
            newest = await self._store.log.newest(JOURNAL, 1)
            await self._save(newest[-1].position if newest else None)
            return ()
        epoch, _, digits = self._saved.decode().rpartition(".")
        position = Position(epoch, read_offset(digits) or 1) if epoch else None
        try:
            return await self._store.log.read(JOURNAL, position, _PAGE)
        except Gap as loss:
            logger.warning("Events on %r may be missing, because the journal dropped them.", self._pattern)
            await self._save(loss.resume_from(position))
            return ()

    async def _save(self, position: Position | None) -> bool:
        """Save a position. Return False if another worker has moved it."""
        value = b"-" if position is None else f"{position.epoch}.{position.offset}".encode()
        self._completed = value
        while self._shared:
            with self._outage:
                # A write that appeared to fail may still have succeeded.
                if not await self._swap() and await self._store.kv.get(self._position_key) != value:
                    return False
                break
            await asyncio.sleep(_RETRY)
        self._saved = value
        return True

    async def _swap(self) -> bool:
        """Replace the saved position and return whether it was the expected one."""
        return await self._store.kv.compare_and_set(self._position_key, self._saved, self._completed, _POSITION_TTL)

    async def _renew(self) -> None:
        """Renew the lease, or take it when it's free."""
        trouble = LogOnce(
            self._store.troubles,
            f"The lease of the listener for {self._pattern!r} can't be renewed; retrying",
            f"The lease of the listener for {self._pattern!r} can be renewed again.",
            catches=Exception,
        )
        while True:
            holds = False
            with trouble, suppress(LocalError, OSError):
                async with asyncio.timeout(_LEASE / 3):
                    holds = await self._claim.keep()
            if holds and not self._holds:
                self._wakeup.set()
            self._holds = holds
            await asyncio.sleep(_LEASE / 3)

    async def _wait(self) -> None:
        if self._outage.lasts:
            await asyncio.sleep(_RETRY)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEASE / 3):
                await self._wakeup.wait()
