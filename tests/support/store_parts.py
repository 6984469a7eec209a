"""Helpers for the contract tests of stores: all backings, and functions that write and read streams.

A `Backing` holds the data; a worker is one `Store` on it. To test a new store, add a `Backing` to `BACKINGS`. Contract
tests run on all backings, tests with several workers on the shared ones.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import pytest

from backend_stores import LocalStore, MemoryStore
from dict_backend import Data, DictBackend, void
from millstream._stores import backend_for, open_store
from millstream._stores.base import PAGE_BYTES, Entry, Gap, Position
from millstream._stores.local.server import LocalServer
from millstream._stores.memory.store import UsageCounter
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream._stores.workers import LeasedWorker
from millstream._troubles import Troubles
from nats_parts import NatsBacking
from patience import WAIT
from property_settings import NIGHTLY
from redis_parts import ClusterBacking, RedisBacking, SentinelBacking, until

__all__ = ["MemoryStore", "open_store"]

TTL = 300.0


class Backing(Protocol):
    """The data of a test, empty at first and deleted by `close`.

    Create it outside of an event loop, and use it within one.
    """

    shared: ClassVar[bool]
    """Whether several workers can be open at once."""

    async def worker(self) -> Store:
        """Open another worker."""
        ...

    async def kill(self, store: Store) -> None:
        """End a worker like kill -9: without cleanup, so its lease has to expire."""

    async def close(self) -> None:
        """Close the remaining workers and delete the data."""


class MemoryBacking:
    """The memory of this process, for one worker."""

    shared: ClassVar[bool] = False

    def __init__(self) -> None:
        self._workers: list[Store] = []

    async def worker(self) -> Store:
        assert not self._workers, "memory has only one worker"
        store = open_store("memory://")
        await store.open()
        self._workers.append(store)
        return store

    async def kill(self, store: Store) -> None:
        raise AssertionError("memory doesn't survive its process")

    async def close(self) -> None:
        for store in self._workers:
            await store.close()


class SqliteBacking:
    """A SQLite file, for one process."""

    shared: ClassVar[bool] = False

    def __init__(self) -> None:
        self.folder = TemporaryDirectory(prefix="millstream-")
        self.url = f"sqlite:///{self.folder.name}/store.db"
        self._workers: list[Store] = []

    async def worker(self) -> Store:
        assert not self._workers, "the file has only one worker"
        store = open_store(self.url)
        await store.open()
        self._workers.append(store)
        return store

    async def kill(self, store: Store) -> None:
        raise AssertionError("the file has no other worker")

    async def close(self) -> None:
        for store in self._workers:
            await store.close()
        self.folder.cleanup()


class LocalBacking:
    """A parent process with a store. Workers are connections to it, which the kernel closes when one is killed."""

    shared: ClassVar[bool] = True

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self.server = LocalServer(backend_for)
        self._workers: list[LocalStore] = []

    async def worker(self) -> LocalStore:
        if not self._workers:
            await self.server.start()
        store = LocalStore(self.server.address, self.url)
        await store.open()
        self._workers.append(store)
        return store

    async def kill(self, store: Store) -> None:
        assert isinstance(store, LocalStore)
        store.backend._open = False  # it doesn't reconnect
        store.backend.abort()

    async def close(self) -> None:
        for store in self._workers:
            await store.close()
        await self.server.close()


class LocalSqliteBacking(LocalBacking):
    """A parent process with a SQLite file."""

    def __init__(self) -> None:
        self.folder = TemporaryDirectory(prefix="millstream-")
        super().__init__(f"sqlite:///{self.folder.name}/store.db")

    async def close(self) -> None:
        await super().close()
        self.folder.cleanup()


class DictBacking:
    """A third-party backend."""

    shared: ClassVar[bool] = True

    def __init__(self) -> None:
        self._data = Data()
        self._tally = UsageCounter(self._data)
        self._workers: list[Store] = []

    async def worker(self) -> Store:
        store = Store(DictBackend(self._data, self._tally, lease=1.5))
        await store.open()
        self._workers.append(store)
        return store

    async def kill(self, store: Store) -> None:
        assert isinstance(store, Store)
        workers = store.workers
        assert isinstance(workers, LeasedWorker)
        assert workers._run_task is not None
        workers._run_task.cancel()
        workers._run_task = None
        for tail in store.bus._tails:
            tail.stop()

    async def close(self) -> None:
        for store in self._workers:
            await store.close()


BACKINGS: dict[str, Callable[[], Backing]] = {
    "memory": MemoryBacking,
    "sqlite": SqliteBacking,
    "local": LocalBacking,
    "local-sqlite": LocalSqliteBacking,
    "third-party": DictBacking,
    "redis": RedisBacking,
    "redis+sentinel": SentinelBacking,
    "redis+cluster": ClusterBacking,
    "nats": NatsBacking,
}
"""The backings that contract tests run on."""
if not NIGHTLY:  # the others combine these, or run the same scripts with another client
    for _name in ("local-sqlite", "third-party", "redis+sentinel", "redis+cluster"):
        del BACKINGS[_name]


def backings(names: Iterable[str]) -> list[Any]:
    """Return test parameters. Backings with a server process are not part of `make unit`."""
    return [
        pytest.param(name, marks=pytest.mark.server if name.startswith(("redis", "nats")) else ()) for name in names
    ]


@pytest.fixture(name="backing", params=backings(each for each, make in BACKINGS.items() if make.shared))  # type: ignore[attr-defined]
async def shared_backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Return each store that workers can share. Import this fixture where tests have a parameter `backing`."""
    backing = BACKINGS[request.param]()
    yield backing
    await backing.close()


async def append(store: Store, stream: str, *data: bytes, max_entries: int = 1000) -> list[Position]:
    return [await store.log.append(stream, item, ttl=TTL, max_entries=max_entries) for item in data]


async def read_all(store: Store, stream: str, max_bytes: int = PAGE_BYTES) -> list[Entry]:
    """Read a whole stream, page by page."""
    found: list[Entry] = []
    while page := await store.log.read(stream, found[-1].position if found else None, max_bytes=max_bytes):
        found += page
    return found


def data_of(entries: Any) -> list[bytes]:
    return [entry.data for entry in entries]


class MessageRecorder:
    """A callback that records messages or entries, and can wait for them."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._arrived = asyncio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._arrived.set()

    async def until(self, last: Any) -> list[Any]:
        """Wait for `last` and return all items."""
        async with asyncio.timeout(WAIT):
            while last not in self.items:
                self._arrived.clear()
                await self._arrived.wait()
        return self.items


class TailReader(MessageRecorder):
    """A recorder that follows a stream from its beginning."""

    def __init__(self, store: Store, stream: str) -> None:
        super().__init__()
        self._tail = Tail(store.log, Troubles(), stream, None, self._take, void)
        self._task = asyncio.create_task(self._tail.run())

    async def ready(self) -> "TailReader":
        """Wait until no later entry can be missed."""
        await self._tail.catch_up()
        return self

    def stop(self) -> None:
        self._tail.stop()
        self._task.cancel()

    def _take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self(entry)


async def until_workers(store: Store, true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition is true. It's checked only when workers come or go."""
    changed = asyncio.Event()
    stop = store.workers.watch(changed.set)
    try:
        async with asyncio.timeout(WAIT):
            while not await true():
                await changed.wait()
                changed.clear()
    finally:
        stop()


class Follower:
    """Entries and gaps that a reader of a stream has received."""

    def __init__(self, store: Store, stream: str) -> None:
        self.taken: list[Entry] = []
        self.gaps: list[Gap] = []
        self._task = asyncio.create_task(self._run(store, stream))

    async def _run(self, store: Store, stream: str) -> None:
        tail = Tail(store.log, Troubles(), stream, None, self.taken.extend, self.gaps.append)
        try:
            await tail.catch_up()
            await tail.run()
        finally:
            tail.stop()

    async def until(self, data: bytes) -> None:
        await until(lambda: data in data_of(self.taken))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
