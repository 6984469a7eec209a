"""The store in a SQLite file: as the one in memory, and every change is in the file before anybody knows of it.

One process has it, and its workers, if it has any, ask that one. Members, workers and messages are of living processes,
so they aren't in the file.
"""

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from millstream._stores.base import PAGE_BYTES, Entry, Index, Position
from millstream._stores.groups import Groups, GroupsOf
from millstream._stores.memory.store import MemoryBus, MemoryWorkers
from millstream._stores.memory.topics import never
from millstream._stores.sqlite.commits import Commits
from millstream._stores.sqlite.file import File
from millstream._stores.sqlite.location import Location
from millstream._stores.sqlite.memory import Saved
from millstream._stores.tally import Tally, TallyOf

T = TypeVar("T")


class SqliteKeyValue:
    """`KeyValue` in the file."""

    __slots__ = ("_commits", "_saved")

    def __init__(self, saved: Saved, commits: Commits) -> None:
        self._saved = saved
        self._commits = commits

    async def get(self, key: str) -> bytes | None:
        return await self._commits.read(lambda: at_once(self._saved.values.get(key)), key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._commits.read(lambda: at_once(self._saved.values.get_many(keys)), *keys)

    async def put(self, key: str, value: bytes, ttl: float, *, lossy: bool = False) -> None:
        def put() -> None:
            at_once(self._saved.values.put(key, value, ttl, lossy=lossy))
            self._saved.changed_key(key)

        await self._commits.change(put)

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes | None, ttl: float, *, lossy: bool = False
    ) -> bool:
        def compare_and_set() -> bool:
            done = at_once(self._saved.values.compare_and_set(key, expected, value, ttl, lossy=lossy))
            if done:
                self._saved.changed_key(key)
            return done

        return await self._commits.change(compare_and_set)

    async def delete(self, key: str) -> bool:
        return await self._commits.change(lambda: at_once(self._saved.values.delete(key)))

    async def keys(self, prefix: str) -> list[str]:
        return await self._commits.read(lambda: at_once(self._saved.values.keys(prefix)), "")


class SqliteLog:
    """`EventLog` in the file. All that it holds is in memory, too, so a read touches no disk."""

    __slots__ = ("_commits", "_saved")

    def __init__(self, saved: Saved, commits: Commits) -> None:
        self._saved = saved
        self._commits = commits

    async def append(
        self, stream: str, data: bytes, *, ttl: float, max_entries: int, index: Index | None = None, seal: bool = False
    ) -> Position:
        saved = self._saved

        def append() -> Position:
            position = saved.log.stage(stream, data, ttl, max_entries, index, seal)
            saved.changed_stream(stream)
            if index is not None:
                saved.changed_stream(index.stream)
            return position

        return await self._commits.change(append, lambda position: saved.log.tell(stream, Entry(position, data)))

    async def read(
        self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = PAGE_BYTES
    ) -> Sequence[Entry]:
        return await self._commits.read(lambda: at_once(self._saved.log.read(stream, after, limit, max_bytes)), stream)

    async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Sequence[Entry]:
        return await self._commits.read(lambda: at_once(self._saved.log.newest(stream, limit, max_bytes)), stream)

    async def touch(self, stream: str, ttl: float) -> bool:
        def touch() -> bool:
            done = at_once(self._saved.log.touch(stream, ttl))
            if done:
                self._saved.changed_stream(stream)
            return done

        return await self._commits.change(touch)

    async def trim(self, stream: str) -> None:
        await self._commits.change(lambda: at_once(self._saved.log.trim(stream)))

    def listen(
        self, stream: str, heard: Callable[[Entry], None], *, interrupted: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """As `EventLog.listen`; `interrupted` is never called, for nothing can come between."""
        return self._saved.log.listen(stream, heard)

    async def listening(self, stream: str) -> None:
        """At once."""


class SqliteStore:
    """A store in a file. For one event loop."""

    __slots__ = ("_commits", "_saved", "bus", "epoch", "kv", "log", "members", "rates", "shared", "workers")

    def __init__(
        self,
        location: Location,
        *,
        max_value_bytes: int = 32 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            location: the file.
            max_value_bytes: what each kind of values may take.
            max_log_bytes: what each kind of streams may take.
            clock: Unix time; without it, the machine's.
        """
        self._saved = Saved(File(location), max_value_bytes, max_log_bytes, clock)
        self._commits = Commits(self._saved)
        self.epoch = ""
        self.shared = False
        self.kv = SqliteKeyValue(self._saved, self._commits)
        self.log = SqliteLog(self._saved, self._commits)
        self.workers = MemoryWorkers()
        self.bus = MemoryBus(self.workers.me)
        groups = Groups(self.log)
        groups.come(self.workers.me)
        self.members = GroupsOf(groups, self.workers.me)
        self.rates = TallyOf(Tally(self.kv), self.workers.me)

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """As `Store.watch`; the epoch never changes while the store is open."""
        return never

    def time(self) -> float:
        return time.time()

    async def doubt(self) -> str:
        return self._commits.doubt

    async def open(self) -> None:
        """Open the file, or make it.

        Raises:
            LocalError: it can't be used; nothing in it was changed.
        """
        try:
            content = await self._commits.run(self._saved.file.open)
        except BaseException:
            self._commits.end()
            raise
        self.epoch = self._saved.file.epoch
        self._saved.load(content)
        self._commits.open = True

    async def close(self) -> None:
        self._commits.open = False
        self.bus.end_all()
        self._saved.log.end_all()
        await self._commits.settle()
        await self._commits.run(self._saved.file.close)
        self._commits.end()


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine of the store in memory: none of them ever waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("The store in memory waits.")
