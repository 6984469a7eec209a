"""Handshake sessions, and the records of their state.

A Streamable HTTP session is stored in its sealed id (see `seal`), so an ordinary idle session takes no memory. Its
state (log level, subscriptions, undeclared capabilities, the tombstone after DELETE) is one record in the store,
written on change. Sessions of stdio, HTTP+SSE, and in-memory connections hold their record themselves and end with the
connection.
"""

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct, field

from millstream._protocol.errors import INVALID_REQUEST, OVERLOADED, LocalError, ProtocolError
from millstream._protocol.json_schema import is_object
from millstream._protocol.metadata import ClientInfo
from millstream._protocol.principal import Share
from millstream._protocol.revisions import Revision
from millstream._protocol.uri import normalize_uri
from millstream._recent import Recent
from millstream._server.peers import PAUSE, Peers, RecordUpdate, SessionEnd
from millstream._server.refusals import refusal_error
from millstream._stores.base import OwnerQuotaExceeded, StoreFull, StoreUnavailable
from millstream._stores.store import Store
from millstream._stores.workers import read_again
from millstream._tasks import Tasks

_PREFIX = "session:"
MAX_RECORD = 128 * 1024
"""Maximum size of a record, in bytes, enough for a thousand typical URIs."""


class SessionRecord(Struct, frozen=True, omit_defaults=True):
    """The stored state of a session."""

    log_level: str = ""
    subscriptions: dict[str, str] = field(default={}, name="watched")
    """See `watch_uris`."""
    listed: list[str] = field(default=[], name="subscriptions")
    """The subscriptions in a record of an older version."""
    capabilities: dict[str, Any] | None = None
    """Declared client capabilities, if the sealed id can't hold them exactly."""
    ended: bool = False
    """Whether the session was deleted. The record is then a tombstone."""
    changes: int = 0
    """Number of changes so far."""
    state: dict[str, msgspec.Raw] = {}
    """Values stored by functions (`session_state`)."""


NO_RECORD = SessionRecord()


class Session(Struct, eq=False):
    """A handshake session, for one request. `record` is set for sessions bound to a connection."""

    id: str
    """At least 128 random bits, never shown to other principals."""
    revision: Revision
    client: ClientInfo
    record: SessionRecord | None = None
    owner: str = ""
    """The owner whose share of record memory the session uses."""
    charged_bytes: int = 0
    """Bytes of that share (see `ClientMemoryQuota`)."""
    current: bool = True
    """False if the store has started over since the session began, so its record is lost."""
    issued_at: float = 0.0
    """Unix time, or 0 if a record can be older than the session's first request."""
    expires_at: float = math.inf
    """Unix time. A connection's session ends with the connection instead."""
    address: str = ""
    """Name of the `Address` that it belongs to."""

    @property
    def size(self) -> int:
        """The bytes that its client's capabilities take."""
        return size_of(self.client.capabilities)


# JSON preserves what clients declared. msgpack has no integers beyond 64 bits.
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SessionRecord).decode


def _unpack(raw: bytes | None) -> SessionRecord:
    """Return a session's record. If it can't be read, the session is treated as deleted, so its client begins a new
    one."""
    try:
        record = NO_RECORD if raw is None else _decode(raw)
    except msgspec.DecodeError:
        return SessionRecord(ended=True)
    if record.listed:
        return msgspec.structs.replace(record, subscriptions=watch_uris(record.listed), listed=[])
    return record


Resize = Callable[[Session, int], None]
"""Called with the new record size of a connection's session. Raises if the quota is exceeded."""
OnRecord = Callable[["SessionRecord | None"], None]
"""Called with the record of a session, or None while it's read again after a change on another worker."""

_MAX_KNOWN = 65_536
_MAX_ABSENT = 16_384
_CACHED, _CACHED_BYTES = 1_024, 4_096
"""Maximum number of cached records from other workers, and the maximum size of each."""
TRIES = 100
_FIRST_COUNT = 10**9
"""Change counts have a fixed number of digits, so they don't change the size of a record."""
YOURS = "Your sessions use too much memory. End sessions that you don't need, or try again later."
OTHERS = "Other sessions use too much memory. Try again later."
_UNAVAILABLE = "Stored values can't be read or changed at the moment. Try again."
_PAGE = 500
_SKEW = 5.0
"""Maximum difference in seconds between the store's time on different workers, with a margin."""

_logger = logging.getLogger("millstream")


class SessionRecords:
    """Session records in the store, and the sessions that have one.

    A session without a record needs no lookup. This worker is notified of every record created while it runs, so a
    session that began later has a record only if it's known here. For an older session, the store is queried once.
    """

    def __init__(self, store: Store, ttl: float, peers: Peers, clock: Callable[[], float], resize: Resize) -> None:
        self.clock: Callable[[], float] = clock
        """The clock for the start of sessions."""
        self._store = store
        self._ttl = ttl
        self._peers = peers
        self._resize = resize
        self.on_forget: Callable[[], None] = lambda: None
        """Called whenever knowledge about sessions becomes uncertain."""
        # Knowledge about sessions
        self.known: set[str] = set()
        """Sessions that have or had a record."""
        self._absent: Recent[str, None] = Recent(_MAX_ABSENT)
        """Older sessions without a record in the store, oldest lookup first."""
        self._cache: Recent[str, SessionRecord] = Recent(_CACHED)
        """Decoded records, if each read of the store takes a network round trip."""
        self._since = 0.0
        """Start of the period in which all records are known, by the clock."""
        self._looks: dict[str, object] = {}
        """Session -> its pending read of the store. Removed if newer information arrives first."""
        # Open streams
        self._watchers: dict[str, OnRecord] = {}
        self._tasks = Tasks()
        peers.on(RecordUpdate, lambda message, worker: self._on_activity(message.session))
        peers.on(SessionEnd, lambda message, worker: self._on_activity(message.session))
        peers.on_interruption(self.forget)

    def open(self) -> None:
        """Start tracking records. This worker must already receive messages."""
        self._since = int(self.clock()) + (_SKEW if self._store.shared else 1.0)

    async def close(self) -> None:
        """Stop reading records for open streams."""
        await self._tasks.close()

    def forget(self) -> None:
        """Forget all knowledge when messages may have been lost. The store is queried again for every session."""
        self._looks.clear()
        self.known.clear()
        self._absent.clear()
        self._cache.clear()
        self.open()
        self.on_forget()
        for session_id in self._watchers:
            self._read_soon(session_id)

    def _on_activity(self, session_id: str) -> None:
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
        """Return whether a session can have a record. If not, no lookup is needed."""
        return session.id in self.known or (session.issued_at < self._since and session.id not in self._absent)

    async def get(self, session: Session) -> SessionRecord:
        """Return the record of a session, or an empty one.

        Raises:
            ProtocolError: The store doesn't respond.
        """
        if session.record is not None:
            return session.record
        cached = self._cache.get(session.id)
        if cached is not None:
            return cached
        return await self.read(session) if self.may_exist(session) else NO_RECORD

    async def read(self, session: Session) -> SessionRecord:
        """Return the record in the store, including changes by other workers that this one hasn't been notified of.

        Raises:
            ProtocolError: The store doesn't respond.
        """
        if session.record is not None:
            return session.record
        with convert_store_errors():
            raw, newest = await self._look(session.id)
        record = _unpack(raw)
        if newest and raw is None:
            self.known.discard(session.id)
            self._absent.keep(session.id, None)
        elif newest and raw is not None:
            self._note(session.id)
            if self._store.shared and len(raw) <= _CACHED_BYTES:
                self._cache.keep(session.id, record)
        return record

    async def _look(self, session_id: str) -> tuple[bytes | None, bool]:
        """Return the stored record of a session, and whether it's still current."""
        mine = self._looks[session_id] = object()
        try:
            raw = await self._store.kv.get(_PREFIX + session_id)
        finally:
            newest = self._looks.get(session_id) is mine
            if newest:
                del self._looks[session_id]
        return raw, newest

    async def change(self, session: Session, edit: Callable[[SessionRecord], SessionRecord | None]) -> None:
        """Change a session's record, safely with concurrent changes. A deleted session isn't changed.

        Args:
            edit: Returns the new record, or None to leave it unchanged. Called again after a conflicting change.

        Raises:
            ProtocolError: The record is too large, or the store is full or doesn't respond.
        """
        if session.record is not None:
            record = edit(session.record)
            if record is not None:
                _pack(record)
                grown = growth_of_uris(session.record.subscriptions, record.subscriptions)
                self._resize(session, session.charged_bytes + grown)
                session.record = record
            return
        record = await self._swap(session, edit)
        if record is None:
            return
        watcher = self._watchers.get(session.id)
        if watcher is not None and not self._store.shared:
            watcher(record)
        elif watcher is not None:
            self._read_soon(session.id)  # another worker may have changed the record since
        await self._peers.broadcast(RecordUpdate(session.id))

    async def _swap(
        self, session: Session, edit: Callable[[SessionRecord], SessionRecord | None]
    ) -> SessionRecord | None:
        key, kv = _PREFIX + session.id, self._store.kv
        with convert_store_errors():
            for attempt in range(TRIES):
                raw = await read_again(kv, key, attempt) if attempt or self.may_exist(session) else None
                if raw is not None:
                    self._note(session.id)
                present = _unpack(raw)
                record = None if present.ended else edit(present)
                if record is None:
                    return None
                record = msgspec.structs.replace(record, changes=max(present.changes, _FIRST_COUNT) + 1)
                packed = _pack(record)
                if await kv.compare_and_set(key, raw, packed, self._ttl):
                    self._note(session.id)
                    return record
        raise ProtocolError(OVERLOADED, "The session has too many concurrent changes. Try again.", status=503)

    async def bury(self, session: Session, ttl: float) -> None:
        """Replace a session's record with a tombstone, for the rest of its lifetime.

        Raises:
            ProtocolError: The store is full or doesn't respond.
        """
        key, packed = _PREFIX + session.id, _pack(SessionRecord(ended=True))
        with convert_store_errors():
            await self._store.kv.put(key, packed, ttl)
        self._note(session.id)

    # Open streams

    def watch(self, session_id: str, watcher: OnRecord) -> None:
        """Call `watcher` with the record of a session whenever it changes, here or on another worker."""
        self._watchers[session_id] = watcher

    def unwatch(self, session_id: str, watcher: OnRecord) -> None:
        """Remove a watcher, unless a newer stream replaced it."""
        if self._watchers.get(session_id) == watcher:  # bound methods are equal but not identical
            del self._watchers[session_id]

    def _read_soon(self, session_id: str) -> None:
        """Read a record that another worker changed, for the stream that is open here."""
        self._watchers[session_id](None)
        self._tasks.spawn_once(self._read, session_id)

    async def _read(self, session_id: str) -> None:
        while session_id in self._watchers:
            failed = None
            try:
                raw, newest = await self._look(session_id)
            except (LocalError, OSError) as exc:
                raw, newest, failed = None, False, exc
            watcher = self._watchers.get(session_id)
            if newest:
                if watcher is not None:
                    watcher(_unpack(raw))
                return
            if failed is not None:
                _logger.warning("Couldn't read a session's record; retrying: %s", failed)
                await asyncio.sleep(PAUSE)


@contextlib.contextmanager
def convert_store_errors() -> Generator[None]:
    """Raise failures of the store as errors for the client."""
    try:
        yield
    except (StoreFull, StoreUnavailable) as exc:
        full = YOURS if isinstance(exc, OwnerQuotaExceeded) else OTHERS
        raise refusal_error(exc, full if isinstance(exc, StoreFull) else _UNAVAILABLE) from exc


def _pack(record: SessionRecord) -> bytes:
    data = _encode(record)
    if len(data) > MAX_RECORD:
        raise ProtocolError(
            INVALID_REQUEST, f"A session record must have at most {MAX_RECORD} bytes. Unsubscribe from some resources."
        )
    return data


MAX_HELD = 128 * 1024 * 1024
"""Maximum bytes per worker. A single caller can use half of them."""
_RELEASED = -1
_SLOT_BYTES = 40
"""Average bytes of an entry in a dict."""


def size_of(value: Any) -> int:
    """Return the bytes that a decoded JSON value takes, which can be twenty times its text."""
    own, inner = sys.getsizeof(value), list[Any]()
    if is_object(value):
        inner += [*value, *value.values()]
    elif isinstance(value, list):
        inner += value
    return own + sum([size_of(each) for each in inner])


def watch_uris(uris: Iterable[str]) -> dict[str, str]:
    """Return URIs by normal form, to find them in equivalent spellings. Values are the client's spelling, or "" if it's
    the same."""
    watched: dict[str, str] = {}
    for uri in uris:
        if (form := normalize_uri(uri)) not in watched:
            watched |= {uri: ""} if form == uri else {form: uri}
    return watched


def spellings(watched: Mapping[str, str]) -> list[str]:
    """Return watched URIs as the client has spelled them."""
    return [uri or form for form, uri in watched.items()]


def size_of_uris(watched: Mapping[str, str], entry_bytes: int = 0) -> int:
    """Return the bytes that watched URIs take.

    Args:
        watched: The URIs (see `watch_uris`).
        entry_bytes: See `ChangeSource.entry_bytes`.
    """
    texts = [*watched, *filter(None, watched.values())]
    # Python keeps the UTF-8 form of an encoded string.
    sizes = (sys.getsizeof(text) + (0 if text.isascii() else len(text.encode(errors="replace"))) for text in texts)
    return sum(sizes) + len(watched) * (_SLOT_BYTES + entry_bytes)


def growth_of_uris(before: Mapping[str, str], after: Mapping[str, str], entry_bytes: int = 0) -> int:
    """Return the additional bytes that watched URIs take. Only URIs that differ are examined."""
    added, removed = (
        {form: these[form] for form in these.keys() - others.keys()}
        for these, others in ((after, before), (before, after))
    )
    return size_of_uris(added, entry_bytes) - size_of_uris(removed, entry_bytes)


class ClientMemoryQuota:
    """Counts the bytes that all clients of a server use. A change that needs no additional bytes is never rejected."""

    def __init__(self) -> None:
        self.bytes: Share = Share(MAX_HELD)

    def take(self, owner: str, size: int) -> None:
        """Count bytes for a caller, until they're removed from `bytes`.

        Raises:
            ProtocolError: OVERLOADED, HTTP 503: the caller's share or the whole quota is used up.
        """
        if not self.bytes.take(owner, size):
            is_full = self.bytes.used + size > self.bytes.maximum
            raise ProtocolError(OVERLOADED, OTHERS if is_full else YOURS, status=503)

    def resize(self, session: Session, size: int) -> None:
        """Set the record size of a connection's session.

        Raises:
            ProtocolError: As for `take`.
        """
        if session.charged_bytes == _RELEASED:
            return
        if size > session.charged_bytes:
            self.take(session.owner, size - session.charged_bytes)
        else:
            self.bytes.leave(session.owner, session.charged_bytes - size)
        session.charged_bytes = size

    def release(self, session: Session) -> None:
        """Free the bytes of a session whose connection has ended. Later changes to the session aren't counted."""
        self.resize(session, 0)
        session.charged_bytes = _RELEASED
