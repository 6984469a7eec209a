"""The store in a SQLite file. Every change is committed before it's acknowledged.

One process owns the file, and its workers send it their requests. Kinds that describe running workers stay in memory.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from millstream._stores.base import PAGE_BYTES, Entry, Index, Position
from millstream._stores.ephemeral import SplitLog, SplitMap
from millstream._stores.memory.store import MemoryBackend
from millstream._stores.memory.topics import Topics, never
from millstream._stores.sqlite.file import Database
from millstream._stores.sqlite.items import Items
from millstream._stores.sqlite.location import Location
from millstream._stores.sqlite.streams import Streams
from millstream._stores.sqlite.writer import SqliteWriter
from millstream._stores.store import BackendStore
from millstream._stores.tally import Tally


class SqliteMap:
    """The `Map` in the file."""

    def __init__(self, items: Items, writer: SqliteWriter) -> None:
        self._items = items
        self._writer = writer

    async def get(self, key: str) -> bytes | None:
        return await self._writer.run(lambda: self._items.get(key), writes=False)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._writer.run(lambda: self._items.get_many(keys), writes=False)

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        await self._writer.run(lambda: self._items.put(key, value, ttl, lossy))

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        return await self._writer.run(lambda: self._items.compare_and_set(key, expected, value, ttl, lossy))

    async def delete(self, key: str) -> bool:
        return await self._writer.run(lambda: self._items.delete(key))

    async def keys(self, prefix: str) -> list[str]:
        return await self._writer.run(lambda: self._items.keys(prefix), writes=False)


class SqliteLog:
    """The `Log` in the file."""

    def __init__(self, streams: Streams, writer: SqliteWriter) -> None:
        self._streams = streams
        self._writer = writer
        self.listeners = Topics[Entry]()

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        return await self._writer.run(
            lambda: self._streams.append(stream, data, ttl, max_entries, index, seal),
            lambda position: self.listeners.notify(stream, Entry(position, data)),
        )

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        return await self._writer.run(lambda: self._streams.read(stream, after, limit, max_bytes), writes=False)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        return await self._writer.run(lambda: self._streams.newest(stream, limit, max_bytes), writes=False)

    async def touch(self, stream: str, ttl: float) -> bool:
        return await self._writer.run(lambda: self._streams.touch(stream, ttl))

    async def trim(self, stream: str) -> None:
        await self._writer.run(lambda: self._streams.trim(stream))

    def listen(
        self, stream: str, hear: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Call `hear` with each entry, like `Log.listen`. `interrupted` is never called: no entry can be missed."""
        return self.listeners.add(stream, hear)

    async def wait_until_listening(self, stream: str) -> None:
        """Return immediately."""


class SqliteBackend:
    """A `Backend` in a file, for one event loop."""

    def __init__(
        self,
        location: Location,
        *,
        max_value_bytes: int = 32 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Create a backend without opening the file.

        Args:
            location: the file.
            max_value_bytes: maximum bytes of each kind of values.
            max_log_bytes: maximum bytes of each kind of streams.
            clock: clock that returns Unix time. The system's by default.
        """
        ahead = time.time() - time.monotonic()
        clock = clock or (lambda: time.monotonic() + ahead)  # setting the system clock must not expire data
        self._file = file = Database(location)
        self._items = Items(file, clock, max_value_bytes)
        self._streams = Streams(file, clock, max_log_bytes)
        self._writer = SqliteWriter(file, self._load)
        self._memory = memory = MemoryBackend(max_value_bytes=max_value_bytes, max_log_bytes=max_log_bytes)
        self._log = SqliteLog(self._streams, self._writer)
        self.shared = False
        self.persistent = False
        self.lease = 0.0
        self.kv = SplitMap(SqliteMap(self._items, self._writer), memory.kv)
        self.log = SplitLog(self._log, memory.log)
        tally = Tally(self.kv)
        self.charge = tally.charge
        self.release = tally.release

    @property
    def epoch(self) -> str:
        return self._file.epoch

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Do nothing, because the epoch doesn't change while the store is open."""
        return never

    def time(self) -> float:
        return time.time()

    async def degraded_reason(self) -> str:
        return self._writer.degraded_reason

    async def bind(self, worker: str) -> None:
        """Do nothing, because there is no connection."""

    async def open(self) -> None:
        """Open or create the file.

        Raises:
            LocalError: the file can't be used. Nothing in it was changed.
        """
        await self._writer.start()

    async def close(self) -> None:
        self._log.listeners.clear()
        await self._memory.close()
        await self._writer.stop()

    def _load(self) -> None:
        self._streams.load()
        self._items.load()


class SqliteStore(BackendStore):
    """The store in a file, for one event loop."""

    backend: SqliteBackend

    def __init__(self, location: Location, **options: Any) -> None:
        """Take the arguments of `SqliteBackend`."""
        super().__init__(SqliteBackend(location, **options))
