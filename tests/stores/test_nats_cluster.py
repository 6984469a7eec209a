import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from millstream._stores import open_store
from millstream._stores.base import Entry, Gap, StoreUnavailable
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream._troubles import Troubles
from nats_parts import NatsCluster
from patience import WAIT
from redis_parts import until

pytestmark = [pytest.mark.server, pytest.mark.nightly]

STREAM = "hub:journal"


@pytest.fixture
async def cluster() -> AsyncIterator[NatsCluster]:
    """A cluster of three nodes."""
    nodes = NatsCluster()
    yield nodes
    nodes.close()


async def opened(url: str) -> Store:
    """Return a worker once the nodes have formed a cluster."""
    async with asyncio.timeout(WAIT):
        while True:
            store = open_store(url)
            try:
                await store.open()
            except Exception:  # the cluster elects its leader
                await asyncio.sleep(0.2)
            else:
                return store


async def append_until(store: Store, name: str, done: asyncio.Event, acknowledged: list[bytes]) -> None:
    """Append as fast as possible, and collect the acknowledged entries."""
    number = 0
    while not done.is_set():
        number += 1
        data = f"{name}.{number}".encode()
        with contextlib.suppress(StoreUnavailable):
            await store.log.append(STREAM, data, ttl=3600.0, max_entries=1_000_000)
            acknowledged.append(data)


async def test_acknowledged_entries_survive_losing_a_node(cluster: NatsCluster) -> None:
    url = await cluster.url()
    async with contextlib.AsyncExitStack() as stack:
        stores = [await opened(url) for _ in range(3)]
        for store in stores:
            stack.push_async_callback(store.close)
        await follow_through_failures(cluster, stores, stack)


async def follow_through_failures(cluster: NatsCluster, stores: list[Store], stack: contextlib.AsyncExitStack) -> None:
    """Append on two workers and follow on the third while each node is killed once."""
    acknowledged: list[list[bytes]] = [[], []]
    gaps: list[Gap] = []
    followed: list[Entry] = []
    tail = Tail(stores[2].log, Troubles(), STREAM, None, followed.extend, gaps.append)
    stack.callback(tail.stop)
    await tail.catch_up()
    following = asyncio.create_task(tail.run())
    stack.callback(following.cancel)
    done = asyncio.Event()
    writers = [
        asyncio.create_task(append_until(stores[number], str(number), done, acknowledged[number]))
        for number in range(2)
    ]
    for writer in writers:
        stack.callback(writer.cancel)
    for node in cluster.nodes:
        before = [len(each) for each in acknowledged]
        await until(lambda before=before: all(len(a) > b + 100 for a, b in zip(acknowledged, before, strict=True)))
        node.kill()
        before = [len(each) for each in acknowledged]
        await until(lambda before=before: all(len(a) > b + 100 for a, b in zip(acknowledged, before, strict=True)))
        node.start()
        await node.wait()
        await until_whole(stores[0])
    done.set()
    await asyncio.gather(*writers)
    entries: list[Entry] = []
    while page := await stores[2].log.read(STREAM, entries[-1].position if entries else None):
        entries += page
    data = [entry.data for entry in entries]
    assert len(data) == len(set(data))
    for each in acknowledged:
        kept = set(each)
        assert [item for item in data if item in kept] == each
    await tail.catch_up()
    assert followed == entries
    assert gaps == []


async def until_whole(store: Store) -> None:
    """Return when all replicas are current again."""

    async def whole() -> bool:
        return not await store.degraded_reason()

    await until(whole)
