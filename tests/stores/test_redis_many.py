"""Redis with Sentinel, and as a Cluster: what workers do when another server takes over."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, StoreUnavailable
from millstream._stores.redis.address import parse_address
from millstream._stores.redis.keys import slot_of
from millstream._stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import LEASE, Cluster, RedisServer, Sentinels, until, wait_until
from store_parts import TTL, Heard, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is slow to come isn't one that doesn't come."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)


@asynccontextmanager
async def opened(url: str, count: int) -> AsyncIterator[list[RedisStore]]:
    """Workers that follow the stream."""
    async with AsyncExitStack() as stack:
        stores = [RedisStore(parse_address(url), lease=LEASE) for _ in range(count)]
        for store in stores:
            await store.open()
            stack.push_async_callback(store.close)
            store.log.listen(STREAM, Heard())
            await store.log.listening(STREAM)
        yield stores


async def insist(store: RedisStore, data: bytes) -> None:
    """Append until the store takes it."""
    while True:
        try:
            await append(store, STREAM, data)
        except StoreUnavailable:
            continue
        return


async def test_after_a_failover_that_lost_its_tail_no_acknowledged_event_is_missing() -> None:
    """Our promise: while a worker that saw an event lives. Redis itself replicates late, and loses it."""
    servers = Sentinels(dead_after=1.0)
    try:
        async with opened(servers.url, 2) as (one, two):
            epoch = one.epoch
            await append(one, STREAM, *(b"%d" % n for n in range(10)))
            wait_until(lambda: servers.replica.ask("XLEN", "millstream:{j0}:l:hub:journal") == 10)
            # The replica can't come back to this primary, and the workers, who are there, still can write.
            servers.primary.ask("CONFIG", "SET", "requirepass", "x")
            servers.replica.ask("CLIENT", "KILL", "TYPE", "master")
            await append(one, STREAM, *(b"%d" % n for n in range(10, 20)))
            await append(two, STREAM, *(b"%d" % n for n in range(20, 30)))
            assert servers.replica.ask("XLEN", "millstream:{j0}:l:hub:journal") == 10
            servers.lose_primary()
            async with asyncio.timeout(3 * WAIT):
                await asyncio.gather(insist(one, b"30"), insist(two, b"31"))
            entries = await read_all(two, STREAM)
            assert data_of(entries)[:30] == [b"%d" % n for n in range(30)]
            assert sorted(data_of(entries)[30:]) == [b"30", b"31"]
            assert entries[-1].position.offset - entries[0].position.offset == 31
            assert one.epoch == two.epoch == epoch
    finally:
        servers.close()


async def test_an_unknown_service_and_a_dead_sentinel_are_named() -> None:
    """The message goes to whoever deploys."""
    servers = Sentinels()
    try:
        with pytest.raises(LocalError, match="knows no service 'other'"):
            async with opened(servers.url.replace("/main", "/other"), 1):
                pass
        with pytest.raises(LocalError, match=r"Sentinel at 127\.0\.0\.1:1 doesn.t answer"):
            async with opened("redis+sentinel://127.0.0.1:1/main", 1):
                pass
    finally:
        servers.close()


async def test_a_server_that_is_no_cluster_is_named() -> None:
    """The message goes to whoever deploys."""
    server = RedisServer()
    try:
        with pytest.raises(LocalError, match="not part of a Cluster"):
            async with opened(f"redis+cluster://127.0.0.1:{server.port}", 1):
                pass
    finally:
        server.close()


async def test_keys_that_move_to_another_node_are_found_there_and_on_the_way() -> None:
    """The Cluster's own redirections: ASK while a slot is being moved, MOVED after it."""
    servers = Cluster()
    try:
        async with opened(servers.url, 1) as (store,):
            name = next(f"s{n}" for n in itertools.count() if slot_of(f"s{n}") < 5461)
            slot = str(slot_of(name))
            await store.kv.put(f"session:{name}", b"record", TTL)
            source, target = servers.nodes[0], servers.nodes[2]
            ids = [node.ask("CLUSTER", "MYID").decode() for node in servers.nodes]
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[2])
            assert await store.kv.get(f"session:{name}") == b"record"
            key = f"millstream:{{{name}}}:k:session:{name}"
            source.ask("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")
            assert await store.kv.get(f"session:{name}") == b"record"
            assert await store.kv.compare_and_set(f"session:{name}", b"record", b"new", TTL)
            for node in (target, source, servers.nodes[1]):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[2])
            assert await store.kv.get(f"session:{name}") == b"new"
            assert await store.kv.keys("session:") == [f"session:{name}"]
    finally:
        servers.close()


async def test_the_slot_of_the_hub_moves_to_another_node_and_nobody_misses_or_hears_anything_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fixed defect: a worker that had been sent to the new node before didn't notice that the slot was there now. The
    other one waited for it, and then told everybody that events may be lost.
    """
    monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)
    servers = Cluster()
    try:
        async with opened(servers.url, 2) as (one, two):
            heard = [Heard(), Heard()]
            for store, hears in zip((one, two), heard, strict=True):
                store.log.listen(STREAM, hears)
                await store.log.listening(STREAM)
            before = one.epoch
            positions = await append(one, STREAM, b"before") + await append(two, STREAM, b"before, too")
            moving = Moving(servers, slot_of("j0"))
            moving.bring_keys()
            positions += await append(two, STREAM, b"on the way")  # it's asked to ask the new node
            moving.end()
            positions += await append(one, STREAM, b"after")
            positions += await append(two, STREAM, b"last")
            assert {each.epoch for each in positions} == {before}
            assert one.epoch == two.epoch == before
            for hears in heard:
                found = await hears.until(Entry(positions[-1], b"last"))
                assert data_of(found) == [b"before", b"before, too", b"on the way", b"after", b"last"]
    finally:
        servers.close()


class Moving:
    """A slot on its way from the node that has it to the next one."""

    def __init__(self, servers: Cluster, slot: int) -> None:
        self._nodes = servers.nodes
        self._slot = str(slot)
        owner = next(n for n, end in enumerate((5461, 10923, 16384)) if slot < end)
        self._source, self._target = self._nodes[owner], self._nodes[(owner + 1) % 3]
        self._ids = [node.ask("CLUSTER", "MYID").decode() for node in (self._source, self._target)]
        self._target.ask("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[0])
        self._source.ask("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[1])

    def bring_keys(self) -> None:
        """All of them."""
        while keys := self._source.ask("CLUSTER", "GETKEYSINSLOT", self._slot, "1000"):
            names = [key.decode() for key in keys]
            self._source.ask("MIGRATE", "127.0.0.1", str(self._target.port), "", "0", "5000", "KEYS", *names)

    def end(self) -> None:
        """The slot is the other node's."""
        for node in (self._target, self._source, *self._nodes):
            node.ask("CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[1])


def replicated(server: RedisServer) -> int:
    """How far the stream of changes has come there."""
    return int(re.search(rb"master_repl_offset:(\d+)", server.ask("INFO", "replication"))[1])  # type: ignore[index]


async def test_a_replica_that_takes_over_in_a_cluster_is_found() -> None:
    """The hub's slot has another server then: workers read and write there, and nothing acknowledged is missing."""
    servers = Cluster(dead_after=2.0)
    hub = next(node for number, node in enumerate(servers.nodes) if slot_of("j0") < [5461, 10923, 16384][number])
    replica = servers.add_replica(hub)
    try:
        async with opened(servers.url, 2) as (one, two):
            await append(one, STREAM, *(b"%d" % n for n in range(10)))
            wait_until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
            # One that has nothing at all is a store that lost everything, and begins a new epoch.
            wait_until(lambda: replicated(replica) >= replicated(hub))
            hub.stop()
            await asyncio.gather(insist(one, b"10"), insist(two, b"11"))
            found = data_of(await read_all(two, STREAM))
            assert found[:10] == [b"%d" % n for n in range(10)]
            assert sorted(found[10:]) == [b"10", b"11"]
            heard = Heard()
            two.log.listen(STREAM, heard)
            await insist(one, b"end")
            await until(lambda: any(entry.data == b"end" for entry in heard.items))
    finally:
        servers.close()
