"""Handshake sessions: what a session is, and the record of what it has accumulated.

A session of Streamable HTTP *is* its sealed id (see `session_token`): one that opened nothing occupies no memory. What
it accumulates (log level, subscriptions, undeclared capabilities, the tombstone after DELETE) is one record in
the store, written when it happens. Sessions of stdio, HTTP+SSE and in-memory connections hold their record
themselves and end with the connection.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from millstream.protocol.metadata import Client
from millstream.protocol.revisions import Revision
from millstream.stores.base import KeyValue

_PREFIX = "session:"


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

    __slots__ = ("client", "current", "id", "record", "revision")

    def __init__(
        self, id: str, revision: Revision, client: Client, *, record: Record | None = None, current: bool = True
    ) -> None:
        self.id = id
        """At least 128 random bits, never shown to other principals."""
        self.revision = revision
        self.client = client
        self.record = record
        self.current = current
        """False when its streams belong to an older store epoch and cannot be resumed."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode

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
        """Write a record; it lives as long as the session may."""
        if session.record is not None:
            session.record = record
        else:
            await self._store.put(_PREFIX + session.id, _encode(record), self._ttl)
            self.known.add(session.id)
        watcher = self._watchers.get(session.id)
        if watcher is not None:
            watcher(record.subscriptions)

    def watch(self, session_id: str, watcher: OnSubscriptions) -> None:
        """Tell the open stream of a session which resources it watches, whenever that changes."""
        self._watchers[session_id] = watcher

    def unwatch(self, session_id: str, watcher: OnSubscriptions) -> None:
        """Stop telling, unless a newer stream took over."""
        if self._watchers.get(session_id) is watcher:
            del self._watchers[session_id]
