"""Handshake sessions: what a session is, and the record of what it has accumulated.

A session of Streamable HTTP *is* its sealed id (see `session_token`): one that opened nothing occupies no memory. What
it accumulates (log level, subscriptions, undeclared capabilities, the tombstone after DELETE) is one record in
the store, written when it happens. Sessions of stdio, HTTP+SSE and in-memory connections hold their record
themselves and end with the connection.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Generator
from typing import Any

import msgspec
from msgspec import Struct

from millstream._protocol.errors import INVALID_REQUEST, LocalError, ProtocolError
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import Revision
from millstream._server.peer_messages import RecordUpdate, SessionEnd
from millstream._server.peers import PAUSE, Peers
from millstream._stores.base import ShareFull, Store, StoreFull, StoreUnavailable

_PREFIX = "session:"
MAX_RECORD = 128 * 1024
"""Bytes of one record: a thousand URIs of usual length."""


class SessionRecord(Struct, frozen=True, omit_defaults=True):
    """What a session has accumulated."""

    log_level: str = ""
    subscriptions: list[str] = []
    capabilities: dict[str, Any] | None = None
    """Declared client capabilities, when the sealed id could not hold them exactly."""
    ended: bool = False
    """A tombstone: DELETE was answered."""
    changes: int = 0
    """How often it has been changed."""
    state: dict[str, msgspec.Raw] = {}
    """What functions keep for it (`session_state`)."""


NO_RECORD = SessionRecord()


class Session:
    """One handshake session as one request sees it. `record` is set for sessions bound to a connection."""

    __slots__ = ("client", "current", "expires_at", "held", "id", "issued_at", "owner", "record", "revision")

    def __init__(
        self,
        id: str,
        revision: Revision,
        client: ClientInfo,
        *,
        record: SessionRecord | None = None,
        owner: str = "",
        current: bool = True,
        issued_at: float = 0.0,
        expires_at: float = math.inf,
    ) -> None:
        self.id: str = id
        """At least 128 random bits, never shown to other principals."""
        self.revision: Revision = revision
        self.client: ClientInfo = client
        self.record: SessionRecord | None = record
        self.owner: str = owner
        """Whose share of the room for records of connections it takes."""
        self.held: int = 0
        """Bytes of that share, see `Held`."""
        self.current: bool = current
        """False when its streams belong to an older store epoch and cannot be resumed."""
        self.issued_at: float = issued_at
        """Unix time; 0 where a record may be older than the session's first request."""
        self.expires_at: float = expires_at
        """Unix time; a session of a connection ends with it instead."""


FULL = -32000
"""In the body of a 503; clients act on the status."""

# JSON, as what clients declare came: msgpack has no integers beyond 64 bits.
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SessionRecord).decode

Resize = Callable[[Session, int], None]
"""Told how many bytes the record of a connection's session will have; refuses what finds no room."""
OnRecord = Callable[["SessionRecord | None"], None]
"""Told the record of a session; None while it is being read, because another worker changed it."""

_MAX_KNOWN = 65_536
_MAX_ABSENT = 16_384
_CACHED, _CACHED_BYTES = 1_024, 4_096
"""How many records of other workers' making are kept decoded, and how large each may be."""
_TRIES = 100
_UNCHANGED = 10**9
"""Counts of changes have the same number of digits, so a record doesn't grow because of them."""
YOURS = "Too much is kept for your sessions: end those that you don't need, or try again later"
OTHERS = "Too much is kept for other sessions: try again later"
_PAGE = 500
_SKEW = 5.0
"""Seconds by which the store's time may differ between workers, with room to spare."""

_logger = logging.getLogger("millstream")


class SessionRecords:
    """Session records in the store, and which sessions have one.

    A session that has none costs no look-up. This worker hears of every record that is made while it listens, so a
    session that began later has one only if this worker knows it. Of an older one the store is asked once.
    """

    __slots__ = (
        "_absent", "_cache", "_forgotten", "_looks", "_missed", "_peers", "_reading", "_resize", "_restoring", "_since",
        "_store", "_ttl", "_watchers", "clock", "known",
    )  # fmt: skip

    def __init__(self, store: Store, ttl: float, peers: Peers, clock: Callable[[], float], resize: Resize) -> None:
        # Configuration
        self.clock: Callable[[], float] = clock
        """Says when sessions begin."""
        self._store = store
        self._ttl = ttl
        self._peers = peers
        self._resize = resize
        self._forgotten: list[Callable[[], None]] = []
        # What this worker knows
        self.known: set[str] = set()
        """Sessions that have a record, or had one."""
        self._absent: dict[str, None] = {}
        """Older sessions of which the store has none, oldest look-up first."""
        self._cache: dict[str, SessionRecord] = {}
        """Where every look at the store is a journey."""
        self._since = 0.0
        """By the clock. A session that began later has a record only if it is known."""
        self._looks: dict[str, object] = {}
        """Session -> the look at the store that is under way, unless something newer was heard meanwhile."""
        # Open streams
        self._watchers: dict[str, OnRecord] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        peers.on(RecordUpdate, lambda message, worker: self._heard(message.session))
        peers.on(SessionEnd, lambda message, worker: self._heard(message.session))
        peers.on_interruption(self.forget)

    def open(self) -> None:
        """Begin to know. This worker listens already."""
        self._since = int(self.clock()) + (_SKEW if self._store.shared else 1.0)

    async def close(self) -> None:
        """Stop reading for open streams."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_forget(self, forgotten: Callable[[], None]) -> None:
        """Call `forgotten` whenever what was known of sessions is no longer certain."""
        self._forgotten.append(forgotten)

    def forget(self) -> None:
        """Something may have been missed: ask the store again about every session."""
        self._looks.clear()
        self.known.clear()
        self._absent.clear()
        self._cache.clear()
        self.open()
        for forgotten in self._forgotten:
            forgotten()
        for session_id in self._watchers:
            self._read_soon(session_id)

    def _heard(self, session_id: str) -> None:
        self._note(session_id)
        if session_id in self._watchers:
            self._read_soon(session_id)

    def _note(self, session_id: str) -> None:
        if len(self.known) >= _MAX_KNOWN:
            self.forget()
        self.known.add(session_id)
        self._looks.pop(session_id, None)
        self._absent.pop(session_id, None)
        self._cache.pop(session_id, None)

    def may_exist(self, session: Session) -> bool:
        """Whether a session may have a record; where not, nobody has to look."""
        return session.id in self.known or (session.issued_at < self._since and session.id not in self._absent)

    async def get(self, session: Session) -> SessionRecord:
        """The record of a session; an empty one when nothing was written.

        Raises:
            ProtocolError: the store does not answer.
        """
        if session.record is not None:
            return session.record
        cached = self._cache.get(session.id)
        if cached is not None:
            return cached
        return await self.read(session) if self.may_exist(session) else NO_RECORD

    async def read(self, session: Session) -> SessionRecord:
        """The record as the store has it: what another worker has written counts before this one has heard of it.

        Raises:
            ProtocolError: the store does not answer.
        """
        if session.record is not None:
            return session.record
        with _refusing():
            raw, newest = await self._look(session.id)
        record = NO_RECORD if raw is None else _decode(raw)
        if newest:
            self._learn(session.id, raw, record)
        return record

    async def _look(self, session_id: str) -> tuple[bytes | None, bool]:
        """What the store has of a session, and whether nothing newer was heard meanwhile."""
        mine = self._looks[session_id] = object()
        try:
            raw = await self._store.kv.get(_PREFIX + session_id)
        finally:
            newest = self._looks.get(session_id) is mine
            if newest:
                del self._looks[session_id]
        return raw, newest

    def _learn(self, session_id: str, raw: bytes | None, record: SessionRecord) -> None:
        if raw is not None:
            self._note(session_id)
            if self._store.shared and len(raw) <= _CACHED_BYTES:
                if len(self._cache) >= _CACHED:
                    self._cache.clear()
                self._cache[session_id] = record
            return
        self.known.discard(session_id)
        if len(self._absent) >= _MAX_ABSENT:
            del self._absent[next(iter(self._absent))]
        self._absent[session_id] = None

    async def change(self, session: Session, edit: Callable[[SessionRecord], SessionRecord | None]) -> None:
        """Change what a session has accumulated, whoever else changes it meanwhile. An ended session stays as it is:
        what a call still does in it is nobody's.

        Args:
            session: the session.
            edit: gives the new record for the present one, or None to leave it; called again when another was faster.

        Raises:
            ProtocolError: it is too large, or the store is full or does not answer.
        """
        if session.record is not None:
            record = edit(session.record)
            if record is not None:
                self._resize(session, len(_pack(record)))
                session.record = record
            return
        record = await self._swap(session, edit)
        if record is None:
            return
        watcher = self._watchers.get(session.id)
        if watcher is not None and not self._store.shared:
            watcher(record)
        elif watcher is not None:
            self._read_soon(session.id)  # another worker may have been faster since
        await self._peers.tell(RecordUpdate(session.id))

    async def _swap(
        self, session: Session, edit: Callable[[SessionRecord], SessionRecord | None]
    ) -> SessionRecord | None:
        key, kv = _PREFIX + session.id, self._store.kv
        look = self.may_exist(session)
        with _refusing():
            for _ in range(_TRIES):
                raw = await kv.get(key) if look else None
                if raw is not None:
                    self._note(session.id)
                present = NO_RECORD if raw is None else _decode(raw)
                record = None if present.ended else edit(present)
                if record is None:
                    return None
                record = msgspec.structs.replace(record, changes=max(present.changes, _UNCHANGED) + 1)
                packed = _pack(record)
                if await kv.compare_and_set(key, raw, packed, self._ttl):
                    self._note(session.id)
                    return record
                look = True
        raise ProtocolError(FULL, "The session is changed too often at once: try again", status=503)

    async def bury(self, session: Session, ttl: float) -> None:
        """Write the tombstone of a session, which replaces its record for the rest of its life.

        Raises:
            ProtocolError: the store is full or does not answer.
        """
        key, packed = _PREFIX + session.id, _pack(SessionRecord(ended=True))
        with _refusing():
            await self._store.kv.put(key, packed, ttl)
        self._note(session.id)

    # Open streams

    def watch(self, session_id: str, watcher: OnRecord) -> None:
        """Tell the open stream of a session its record, whenever that changes, here or elsewhere."""
        self._watchers[session_id] = watcher

    def unwatch(self, session_id: str, watcher: OnRecord) -> None:
        """Stop telling, unless a newer stream took over."""
        if self._watchers.get(session_id) == watcher:  # of bound methods there are many that are equal
            del self._watchers[session_id]

    def _read_soon(self, session_id: str) -> None:
        """Read a record that another worker changed, for the stream that is open here."""
        self._watchers[session_id](None)
        if session_id not in self._reading:
            self._reading[session_id] = asyncio.get_running_loop().create_task(self._read(session_id))

    async def _read(self, session_id: str) -> None:
        try:
            await self._read_newest(session_id)
        finally:
            # Here, not when somebody is told that the task is done: what is heard until then has to be read, too.
            self._reading.pop(session_id, None)

    async def _read_newest(self, session_id: str) -> None:
        while session_id in self._watchers:
            failed = None
            try:
                raw, newest = await self._look(session_id)
            except (LocalError, OSError) as exc:
                raw, newest, failed = None, False, exc
            watcher = self._watchers.get(session_id)
            if newest:
                if watcher is not None:
                    watcher(NO_RECORD if raw is None else _decode(raw))
                return
            if failed is not None:
                _logger.warning("The record of a session could not be read; it is tried again: %s", failed)
                await asyncio.sleep(PAUSE)


@contextlib.contextmanager
def _refusing() -> Generator[None]:
    """What a store cannot do, as the error that the client gets."""
    try:
        yield
    except ShareFull as exc:
        raise ProtocolError(FULL, YOURS, status=503) from exc
    except StoreFull as exc:
        raise ProtocolError(FULL, OTHERS, status=503) from exc
    except StoreUnavailable as exc:
        raise ProtocolError(FULL, "Sessions cannot be read or changed now: try again", status=503) from exc


def _pack(record: SessionRecord) -> bytes:
    data = _encode(record)
    if len(data) > MAX_RECORD:
        raise ProtocolError(INVALID_REQUEST, f"A session keeps at most {MAX_RECORD} bytes: unsubscribe from some")
    return data
