"""The store in a SQLite file. A change is committed before it's acknowledged.

One process owns the file, and its workers send it their requests. Kinds that describe running workers stay in memory.
All SQL runs in one thread. Waiting jobs share a transaction and return after its commit.
"""

import asyncio
import inspect
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._stores.base import EPHEMERAL, Entry, Log, Map, Position, StoreUnavailable
from millstream._stores.memory.log import MemoryLog, kind_of
from millstream._stores.memory.store import MemoryBackend, ProcessBackend
from millstream._stores.sqlite.file import Database, Location
from millstream._stores.sqlite.items import Items, Streams

T = TypeVar("T")

MAX_JOBS = 1_024
"""Maximum number of jobs per transaction."""
PAUSE = 1.0
"""Seconds before the next attempt after a failed write."""


class _Job(Struct, eq=False):
    work: Callable[[], Any]
    callback: Callable[[Any], None] | None
    writes: bool
    done: asyncio.Future[Any]
    result: Any = None
    failure: Exception | None = None


class SqliteWriter(Struct, eq=False):
    """A runner of jobs on one file, for one event loop."""

    _file: Database
    _load: Callable[[], None]
    """Loads cached state from the file. Runs in the thread."""
    open: bool = False
    degraded_reason: str = ""
    """Why the last transaction failed, or an empty string if it succeeded."""
    _thread: ThreadPoolExecutor | None = None
    _waiting: list[_Job] = []
    _task: asyncio.Task[None] | None = None
    _failed: tuple[float, LocalError] | None = None
    """Time of the last failed transaction, and its error."""

    async def start(self) -> None:
        """Open the file.

        Raises:
            LocalError: The file can't be used.
        """
        thread = ThreadPoolExecutor(1, "millstream-sqlite")
        try:
            await asyncio.get_running_loop().run_in_executor(thread, self._open)
        except BaseException:
            thread.shutdown()
            raise
        self._failed, self._thread, self.open = None, thread, True

    async def stop(self) -> None:
        """Finish pending jobs and close the file."""
        self.open = False
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
            self._thread.shutdown()
            self._thread = None

    async def run(
        self, work: Callable[[], T], callback: Callable[[T], None] | None = None, *, writes: bool = True
    ) -> T:
        """Run a job and return its result after the commit and after `callback` was called with it.

        Raises:
            Exception: `work` raised it before it wrote anything.
            LocalError: Reading or writing the file failed.
        """
        if not self.open:
            raise StoreUnavailable("The store is closed.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Job(work, callback, writes, done))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                jobs, self._waiting = self._waiting[:MAX_JOBS], self._waiting[MAX_JOBS:]
                await loop.run_in_executor(self._thread, self._run_all, jobs)
                for job in jobs:
                    if job.failure is None and job.callback is not None:
                        try:
                            job.callback(job.result)
                        except Exception:  # a failing listener must not keep the other jobs from ending
                            _logger.exception("A callback for entries of the store failed.")
                    if job.done.done():
                        continue
                    if job.failure is not None:
                        job.done.set_exception(job.failure)
                    else:
                        job.done.set_result(job.result)
        finally:
            self._task = None

    # in the thread

    def _open(self) -> None:
        self._file.open()
        self._load()

    def _run_all(self, jobs: Sequence[_Job]) -> None:
        """Run jobs in one transaction. If it fails, run the read-only jobs again without the others."""
        writes = any(job.writes for job in jobs)
        try:
            self._make_ready(writes=writes)
            if writes:
                self._file.transact(lambda: self._work(jobs))
                self._failed, self.degraded_reason = None, ""
            else:
                self._work(jobs)
            return
        except Exception as exc:  # rolled back, or the outcome is unknown
            error = self._file.explain(exc)
        if self._failed is None or str(self._failed[1]) != str(error) or time.monotonic() - self._failed[0] >= PAUSE:
            self._failed, self.degraded_reason = (time.monotonic(), error), str(error)
        for job in jobs:
            job.failure = type(error)(str(error))
        readers = [job for job in jobs if not job.writes]
        if self._file.is_open:
            try:
                self._load()  # the counts include rolled-back changes
                if writes:
                    self._work(readers)
            except Exception:  # these jobs keep their error
                self._file.drop()

    def _make_ready(self, *, writes: bool) -> None:
        """Reopen the file if needed. Shortly after a failure, fail immediately, so jobs don't retry on a full disk."""
        failed = self._failed
        if failed is not None and (writes or not self._file.is_open):
            if time.monotonic() - failed[0] < PAUSE:
                raise type(failed[1])(str(failed[1]))
            if self._file.is_open:
                self._file.make_room()
        if not self._file.is_open:
            self._open()

    def _work(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            job.failure = None
            try:
                job.result = job.work()
            except sqlite3.Error:
                raise
            except Exception as exc:  # the caller runs this one
                job.failure = exc


_logger = logging.getLogger("millstream.stores")
_READS = frozenset({"get", "newest", "read"})


def _calls(
    protocol: type, kind: type, part: Items | Streams, memory: Map | Log, writer: SqliteWriter
) -> dict[str, Any]:
    """Return the asynchronous methods of a protocol that its class lacks. They call the methods of a part in the
    writer's thread, or of `memory` for ephemeral kinds.
    """

    def call(name: str) -> Callable[..., Awaitable[Any]]:
        method, memory_method = getattr(part, name), getattr(memory, name)

        async def run(first: str, *args: Any, **options: Any) -> Any:
            if kind_of(first) in EPHEMERAL:
                return await memory_method(first, *args, **options)
            return await writer.run(lambda: method(first, *args, **options), writes=name not in _READS)

        return run

    methods = vars(protocol).items()
    return {name: call(name) for name, each in methods if inspect.iscoroutinefunction(each) and name not in vars(kind)}


class SqliteMap(SimpleNamespace):
    """The `Map` in the file, and in memory for ephemeral kinds."""

    def __init__(self, items: Items, memory: Map, writer: SqliteWriter) -> None:
        super().__init__(**_calls(Map, SqliteMap, items, memory, writer))
        self._items = items
        self._memory = memory
        self._writer = writer

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        if all(kind_of(key) in EPHEMERAL for key in keys):
            return await self._memory.get_many(keys)
        return list(await asyncio.gather(*map(self.get, keys)))

    async def keys(self, prefix: str) -> list[str]:
        durable = await self._writer.run(lambda: self._items.keys(prefix), writes=False)
        return durable + await self._memory.keys(prefix)


class SqliteLog(SimpleNamespace):
    """The `Log` in the file, and in memory for ephemeral kinds. Listeners never miss an entry."""

    def __init__(self, streams: Streams, memory: MemoryLog, writer: SqliteWriter) -> None:
        super().__init__(**_calls(Log, SqliteLog, streams, memory, writer))
        self._streams = streams
        self._memory = memory
        self._writer = writer
        self.listen = memory.listen

    async def append(self, stream: str, data: bytes, *, topic: str = "", **options: Any) -> Position:
        if kind_of(stream) in EPHEMERAL:
            return await self._memory.append(stream, data, topic=topic, **options)

        def push(position: Position) -> None:
            self._memory.push(stream, topic, Entry(position, data))

        return await self._writer.run(lambda: self._streams.append(stream, data, **options), push)

    async def wait_until_listening(self, stream: str) -> Position | None:
        newest: Sequence[Entry] = await self.newest(stream, 1)
        return newest[0].position if newest else None


class SqliteBackend(ProcessBackend):
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
            location: The file.
            max_value_bytes: Maximum total bytes of the values of each kind.
            max_log_bytes: Maximum total bytes of the streams of each kind.
            clock: Clock that returns Unix time. The system's by default.
        """
        ahead = time.time() - time.monotonic()
        clock = clock or (lambda: time.monotonic() + ahead)  # setting the system clock must not expire data
        self._file = file = Database(location)
        self._items = Items(file, clock, max_value_bytes)
        self._streams = Streams(file, clock, max_log_bytes)
        self._writer = SqliteWriter(file, self._load)
        self._memory = memory = MemoryBackend(max_value_bytes=max_value_bytes, max_log_bytes=max_log_bytes)
        kv: Any = SqliteMap(self._items, memory.kv, self._writer)
        log: Any = SqliteLog(self._streams, memory.log, self._writer)
        self.kv: Map = kv
        self.log: Log = log
        super().__init__(self.kv)

    @property
    def epoch(self) -> str:
        return self._file.epoch

    async def degraded_reason(self) -> str:
        return self._writer.degraded_reason

    async def open(self) -> None:
        """Open or create the file.

        Raises:
            LocalError: The file can't be used. Nothing in it was changed.
        """
        await self._writer.start()

    async def close(self) -> None:
        await self._memory.close()
        await self._writer.stop()

    def _load(self) -> None:
        self._streams.load()
        self._items.load()
