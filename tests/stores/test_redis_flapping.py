"""Two servers that take turns faster than workers follow: some stay behind, and go on there."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count, takewhile

import pytest

from millstream._stores.base import StoreUnavailable
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import RedisServer, opened, until
from redis_wire import Proxy
from store_parts import Follower, append, data_of, read_all

pytestmark = [pytest.mark.server, pytest.mark.impatient]
STREAM = "hub:journal"
WORKERS = 3
TURNS = 14


@pytest.fixture
async def servers() -> AsyncIterator[list[RedisServer]]:
    """Two servers, each of which takes itself for the primary."""
    pair = [RedisServer("--repl-diskless-sync-delay", "0"), RedisServer()]
    yield pair
    for each in pair:
        each.close()


@asynccontextmanager
async def _beating(workers: list[RedisStore]) -> AsyncIterator[None]:
    """Leases are longer here than a machine stands still: a repair would wait long for one who asks nothing."""

    async def hurry() -> None:
        while True:
            await asyncio.sleep(0.5)
            for worker in workers:
                worker.workers.hurry()

    task = asyncio.create_task(hurry())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("seed", range(3))
async def test_whichever_server_workers_are_led_to_no_acknowledged_event_is_lost_or_there_twice(
    seed: int, servers: list[RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our promise: an acknowledged event is there as long as a worker lives that saw it."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        first, second = servers
        wires = [await stack.enter_async_context(Proxy(first.port)) for _ in range(WORKERS)]
        urls = [f"redis://127.0.0.1:{wire.port}" for wire in wires]
        workers = [await stack.enter_async_context(opened(url, lease=WAIT, insists=True)) for url in urls]
        await append(workers[0], STREAM, b"first")
        second.ask("REPLICAOF", "127.0.0.1", str(first.port))
        await until(lambda: second.ask("XLEN", Keys("millstream:").stream(STREAM)) == 1)
        second.ask("REPLICAOF", "NO", "ONE")
        await stack.enter_async_context(_beating(workers))
        followers = [Follower(worker, STREAM) for worker in workers]
        acknowledged: list[bytes] = []
        goes_on = True

        async def publish(number: int) -> None:
            for tries in takewhile(lambda _: goes_on, count()):
                data = b"%d-%d" % (number, tries)
                with suppress(StoreUnavailable):
                    await append(workers[number], STREAM, data, max_entries=100_000)
                    acknowledged.append(data)
                await asyncio.sleep(chance.random() * 0.01)

        async def lead(number: int, server: RedisServer, after: float) -> None:
            await asyncio.sleep(after)
            wires[number].to = server.port
            wires[number].cut()
            workers[number].workers.hurry()

        publishing = [asyncio.create_task(publish(number)) for number in range(WORKERS)]
        moving: list[asyncio.Task[None]] = []
        for turn in range(TURNS):
            for number in range(WORKERS):
                if chance.random() < 0.8:
                    after = chance.random() * chance.choice((0.01, 0.1, 0.5))
                    moving.append(asyncio.create_task(lead(number, servers[turn % 2], after)))
            await asyncio.sleep(chance.random() * chance.choice((0.05, 0.3)))
        await asyncio.gather(*moving)
        await asyncio.gather(*(lead(number, first, 0) for number in range(WORKERS)))
        goes_on = False
        await asyncio.gather(*publishing)
        await asyncio.gather(*(worker.workers.beat() for worker in workers))
        await append(workers[0], STREAM, b"last", max_entries=100_000)
        for follower in followers:
            await follower.until(b"last")
        there = data_of(await read_all(workers[0], STREAM))
        assert len(there) == len(set(there))
        assert set(acknowledged) <= set(there)
        for follower in followers:
            assert follower.told or data_of(follower.taken) == there
            assert set(acknowledged) <= set(data_of(follower.taken))
            await follower.close()
