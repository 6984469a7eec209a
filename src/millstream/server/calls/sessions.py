"""Handshake sessions: what a session is, and the record of what it has accumulated.

A session of Streamable HTTP *is* its sealed id (see `session_token`): one that opened nothing occupies no memory. What
it accumulates (log level, subscriptions, undeclared capabilities, the tombstone after DELETE) is one record in
the store, written when it happens. Sessions of stdio, HTTP+SSE and in-memory connections hold their record
themselves and end with the connection.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from millstream.protocol.errors import INVALID_REQUEST, ProtocolError
from millstream.protocol.metadata import Client
from millstream.protocol.revisions import Revision
from millstream.stores.base import KeyValue, StoreFull

_PREFIX = "session:"
MAX_RECORD = 128 * 1024
"""Bytes of one record: a thousand URIs of usual length."""


class Record(Struct, omit_defaults=True):
    """What a session has accumulated."""

    log_level: str = ""
    subscriptions: list[str] = []
    capabilities: dict[str, Any] | None = None
    """Declared client capabilities, when the sealed id could not hold them exactly."""
    ended: bool = False
    """A tombstone: DELETE was answered."""


class Session:
    """One handshake session as one request sees it. `record` is set for sessions bound to a connection."""

    __slots__ = ("client", "current", "expires_at", "id", "record", "revision")

    def __init__(
        self,
        id: str,
        revision: Revision,
        client: Client,
        *,
        record: Record | None = None,
        current: bool = True,
        expires_at: float = math.inf,
    ) -> None:
        self.id = id
        """At least 128 random bits, never shown to other principals."""
        self.revision = revision
        self.client = client
        self.record = record
        self.current = current
        """False when its streams belong to an older store epoch and cannot be resumed."""
        self.expires_at = expires_at
        """Unix time; a session of a connection ends with it instead."""


FULL = -32000
"""In the body of a 503; clients act on the status."""

# JSON, as what clients declare came: msgpack has no integers beyond 64 bits.
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode

OnSubscriptions = Callable[[list[str]], None]


class Records:
    """Session records in the store, and the local set of sessions that have one.

    A session outside the set needs no look-up. Not yet fed from other workers: with a shared store the set is
    loaded at start and by every sweep.
    """

    __slots__ = ("_store", "_ttl", "_watchers", "known")

    def __init__(self, store: KeyValue, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        self._watchers: dict[str, OnSubscriptions] = {}
        self.known: set[str] = set()

    async def load(self) -> None:
        """Learn which sessions have a record: at start, and now and then to forget those that expired."""
        self.known = {key.removeprefix(_PREFIX) for key in await self._store.keys(_PREFIX)}

    async def get(self, session: Session) -> Record:
        """The record of a session; an empty one when nothing was written."""
        if session.record is not None:
            return session.record
        if session.id not in self.known:
            return Record()
        raw = await self._store.get(_PREFIX + session.id)
        if raw is None:
            self.known.discard(session.id)
            return Record()
        return _decode(raw)

    async def put(self, session: Session, record: Record) -> None:
        """Write what a session has accumulated.

        Raises:
            ProtocolError: it is too large, or the store is full.
        """
        if session.record is not None:
            _pack(record)  # what a connection holds is bounded as well
            session.record = record
        elif not record.ended:  # what a call still does in an ended session is nobody's
            await self._write(session, record, self._ttl)
        watcher = self._watchers.get(session.id)
        if watcher is not None:
            watcher(record.subscriptions)

    async def bury(self, session: Session, ttl: float) -> None:
        """Write the tombstone of a session, which replaces its record for the rest of its life.

        Raises:
            ProtocolError: the store is full.
        """
        await self._write(session, Record(ended=True), ttl)

    async def _write(self, session: Session, record: Record, ttl: float) -> None:
        data = _pack(record)
        try:
            await self._store.put(_PREFIX + session.id, data, ttl)
        except StoreFull as exc:
            raise ProtocolError(FULL, "Too much is kept for other sessions: try again later", status=503) from exc
        self.known.add(session.id)

    def watch(self, session_id: str, watcher: OnSubscriptions) -> None:
        """Tell the open stream of a session which resources it watches, whenever that changes."""
        self._watchers[session_id] = watcher

    def unwatch(self, session_id: str, watcher: OnSubscriptions) -> None:
        """Stop telling, unless a newer stream took over."""
        if self._watchers.get(session_id) is watcher:
            del self._watchers[session_id]


def _pack(record: Record) -> bytes:
    data = _encode(record)
    if len(data) > MAX_RECORD:
        raise ProtocolError(INVALID_REQUEST, f"A session keeps at most {MAX_RECORD} bytes: unsubscribe from some")
    return data
