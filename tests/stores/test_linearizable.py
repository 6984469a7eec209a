import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest

from cases import for_each
from millstream.extensions import LocalError
from millstream.stores import Map
from redis_parts import RedisServer, open_worker
from redis_wire import Proxy
from shared_store import MemoryStore
from store_parts import BACKINGS, TTL, backings
from stores.linearizability import Operation, Value, is_linearizable

pytestmark = [pytest.mark.many, pytest.mark.nightly]
HISTORIES = 1_000
WORKERS = 3
EACH = 4
"""Operations of one worker in one history."""
VALUES = (b"a", b"b")


class Recorder:
    """A worker pool that runs random operations on one key and records a history."""

    def __init__(self, key: str, seed: int) -> None:
        self.key = key
        self.history: list[Operation] = []
        self._random = random.Random(seed)
        self._times = count()

    async def work(self, kv: Map) -> None:
        """Run the operations of one worker."""
        for _ in range(EACH):
            kind, arguments = self._choose()
            began = next(self._times)
            try:
                result = await self._do(kv, kind, arguments)
            except (LocalError, OSError):
                self.history.append(Operation(kind, arguments, None, began, None))
            else:
                self.history.append(Operation(kind, arguments, result, began, next(self._times)))

    def _choose(self) -> tuple[str, tuple[Value, ...]]:
        pick = self._random.choice
        kind = pick(("get", "get", "put", "cas", "cas", "cas", "delete"))
        arguments = {"get": (), "delete": (), "put": (pick(VALUES),), "cas": (pick((None, *VALUES)), pick(VALUES))}
        return kind, arguments[kind]

    async def _do(self, kv: Map, kind: str, arguments: tuple[Value, ...]) -> Any:
        if kind == "get":
            return await kv.get(self.key)
        if kind == "delete":
            return await kv.delete(self.key)
        if kind == "put":
            await kv.put(self.key, arguments[0] or b"", TTL)
            return None
        return await kv.compare_and_set(self.key, arguments[0], arguments[1], TTL)


async def record(workers: list[Map], seed: int) -> list[Operation]:
    """Return one history."""
    recorder = Recorder(f"history:{seed}", seed)
    await asyncio.gather(*(recorder.work(kv) for kv in workers))
    return recorder.history


async def judge(workers: list[Map], histories: int) -> list[int]:
    """Return the seeds of histories that aren't linearizable. Several are recorded concurrently."""
    wrong: list[int] = []
    for start in range(0, histories, 10):
        seeds = range(start, min(start + 10, histories))
        for seed, history in zip(seeds, await asyncio.gather(*(record(workers, each) for each in seeds)), strict=True):
            if not is_linearizable(history):
                wrong.append(seed)
    return wrong


@pytest.mark.parametrize("name", backings(BACKINGS))
async def test_concurrent_histories_are_linearizable(name: str) -> None:
    backing = BACKINGS[name]()
    try:
        shared = type(backing).shared
        stores = [await backing.worker() for _ in range(WORKERS if shared else 1)]
        workers = [stores[number % len(stores)].kv for number in range(WORKERS)]
        assert await judge(workers, HISTORIES) == []
    finally:
        await backing.close()


@pytest.mark.server
async def test_values_stay_linearizable_with_broken_connections() -> None:
    server = RedisServer()
    try:
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(Proxy(server.port)) for _ in range(WORKERS)]
            stores = [
                await stack.enter_async_context(open_worker(f"redis://127.0.0.1:{each.port}")) for each in proxies
            ]
            breaking = asyncio.create_task(break_connections(proxies))
            try:
                assert await judge([store.kv for store in stores], HISTORIES) == []
            finally:
                breaking.cancel()
    finally:
        server.close()


async def break_connections(proxies: list[Proxy]) -> None:
    """Break connections one after the other, until canceled."""
    for number in count():
        await asyncio.sleep(0.005)
        proxies[number % len(proxies)].cut()


class Broken:
    """Values with one planted fault."""

    def __init__(self, kv: Map, way: str) -> None:
        self._kv = kv
        self._way = way
        self._old: Value = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return getattr(self._kv, name)  # type: ignore[no-any-return]

    async def get(self, key: str) -> Value:
        """Return a stale value if that's the fault."""
        found, self._old = self._old, await self._kv.get(key)
        return found if self._way == "stale" else self._old

    async def compare_and_set(self, key: str, expected: Value, value: Value, ttl: float) -> bool:
        """Compare and write in two steps, or write twice, if that's the fault."""
        if self._way == "two steps":
            if await self._kv.get(key) != expected:
                return False
            await asyncio.sleep(0)
            await self._kv.put(key, value or b"", ttl)
            return True
        done = await self._kv.compare_and_set(key, expected, value, ttl)
        if self._way == "repeated":
            done = await self._kv.compare_and_set(key, expected, value, ttl)
        return done

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Return before the write if that's the fault."""
        if self._way == "early":
            self._late = asyncio.ensure_future(self._put_late(key, value, ttl))
            return
        await self._kv.put(key, value, ttl)

    async def _put_late(self, key: str, value: bytes, ttl: float) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await self._kv.put(key, value, ttl)


@for_each("way", ["stale", "two steps", "repeated", "early"])
async def test_linearizability_checker_detects_planted_faults(way: str) -> None:
    kv: Any = Broken(MemoryStore().kv, way)
    assert await judge([Yielding(kv)] * WORKERS, 200) != []  # type: ignore[list-item]


class Yielding:
    """Values that yield to the event loop, so operations overlap."""

    def __init__(self, kv: Any) -> None:
        self._kv = kv

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def operation(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            result = await getattr(self._kv, name)(*arguments)
            await asyncio.sleep(0)
            return result

        return operation
