import asyncio
import itertools
import re
from binascii import crc_hqx
from collections.abc import Iterator

import pytest

from hub_parts import Clients
from millstream._protocol.errors import LocalError
from millstream._stores.base import Gap, StoreUnavailable
from patience import WAIT
from redis_parts import Cluster, RedisServer, RedisStore, Sentinels, open_worker, until, wait_until
from store_parts import TTL, Follower, append, data_of, read_all

pytestmark = [pytest.mark.server, pytest.mark.nightly]
STREAM = "hub:journal"
JOURNAL = "millstream:{j0}:l:hub:journal"


@pytest.fixture
def servers() -> Iterator[Sentinels]:
    """A Sentinel that declares its primary down after one second."""
    servers = Sentinels(dead_after=1.0)
    yield servers
    servers.close()


def cut_off(servers: Sentinels) -> None:
    """Disconnect the replica from its primary, which still accepts writes."""
    servers.primary.ask("CONFIG", "SET", "requirepass", "x")
    servers.replica.ask("CLIENT", "KILL", "TYPE", "master")


async def insist(store: RedisStore, data: bytes) -> None:
    """Append until the store accepts it."""
    async with asyncio.timeout(3 * WAIT):
        while True:
            try:
                await append(store, STREAM, data)
            except StoreUnavailable:
                continue
            return


async def test_failover_is_reported_to_every_reader_as_a_gap(servers: Sentinels) -> None:
    async with open_worker(servers.url) as one, open_worker(servers.url) as two:
        follower, epoch, clients = Follower(two, STREAM), two.epoch, Clients(two)
        await append(one, STREAM, *(b"%d" % n for n in range(10)))
        await clients.join("chat", "ann")
        wait_until(lambda: servers.replica.ask("XLEN", JOURNAL) == 10)
        cut_off(servers)
        lost = (await append(one, STREAM, b"lost"))[0]
        await follower.until(b"lost")
        servers.lose_primary()
        await insist(one, b"after")
        await until(lambda: follower.gaps)
        await insist(one, b"live")
        await follower.until(b"live")
        assert data_of(await read_all(two, STREAM)) == [*(b"%d" % n for n in range(10)), b"after", b"live"]
        with pytest.raises(Gap):
            await one.log.read(STREAM, lost)
        await until(lambda: one.epoch == two.epoch != epoch)
        await clients.presence.refresh()
        assert await clients.on("chat") == ["ann"]
        await one.bus.send(two.workers.me, "topic", b"")
        await follower.close()


async def test_positions_from_an_old_primary_are_rejected(
    servers: Sentinels,
) -> None:
    async with open_worker(servers.primary.url) as old:
        (before,) = await append(old, STREAM, b"before")
        old.backend.adopt("e" * 11 + "0000")
        (after,) = await append(old, STREAM, b"after")
        assert after.epoch > "e" * 11
        with pytest.raises(Gap):
            await old.log.read(STREAM, before)


async def test_wait_rejects_unconfirmed_appends(servers: Sentinels) -> None:
    async with open_worker(f"{servers.primary.url}?wait=1") as store:
        await append(store, STREAM, b"confirmed")
        assert servers.replica.ask("XLEN", JOURNAL) == 1
        cut_off(servers)
        with pytest.raises(StoreUnavailable, match="fewer than 1 replicas"):
            await append(store, STREAM, b"stored here only")
        assert data_of(await read_all(store, STREAM)) == [b"confirmed", b"stored here only"]


async def test_unknown_services_and_dead_sentinels_are_reported(
    monkeypatch: pytest.MonkeyPatch, servers: Sentinels
) -> None:
    monkeypatch.setattr("millstream._stores.redis.client.START_SECONDS", 0.5)
    for url, said in (
        (servers.url.replace("/main", "/other"), "other"),
        ("redis+sentinel://127.0.0.1:1/main", "127.0.0.1:1"),
    ):
        with pytest.raises(LocalError, match=said):
            async with open_worker(url):
                pass


def slot_of(text: str) -> int:
    return crc_hqx(text.encode(), 0) % 16384


def node_of(servers: Cluster, slot: int) -> RedisServer:
    """Return the primary of a slot."""
    for start, end, primary, *_ in servers.nodes[1].ask("CLUSTER", "SLOTS"):
        if start <= slot <= end:
            return next(node for node in servers.nodes if node.port == primary[1])
    raise AssertionError("nobody has the slot")


async def test_moved_cluster_keys_are_found() -> None:
    servers = Cluster()
    try:
        async with open_worker(servers.url) as store:
            name = next(f"s{n}" for n in itertools.count() if slot_of(f"s{n}") < 5461)
            slot, key = str(slot_of(name)), f"session:{name}"
            source, target = servers.nodes[:2]
            ids = [node.ask("CLUSTER", "MYID").decode() for node in servers.nodes]
            await store.kv.put(key, b"before", TTL)
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            for each in source.ask("CLUSTER", "GETKEYSINSLOT", slot, "100"):
                source.ask("MIGRATE", "127.0.0.1", str(target.port), each.decode(), "0", "5000")
            assert await store.kv.get(key) == b"before"
            await store.kv.put(key, b"on the way", TTL)
            for node in servers.nodes:
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert await store.kv.get(key) == b"on the way"
            await store.kv.put(key, b"after", TTL)
            assert await store.kv.keys("session:") == [key]
    finally:
        servers.close()


async def test_cluster_failover_is_reported_as_a_gap() -> None:
    servers = Cluster(dead_after=1.0)
    try:
        primary = node_of(servers, slot_of("j0"))
        servers.add_replica(primary)
        async with open_worker(servers.url) as one, open_worker(servers.url) as two:
            follower, epoch = Follower(two, STREAM), one.epoch
            await append(one, STREAM, b"before")
            await follower.until(b"before")
            primary.ask("WAIT", "1", "5000")
            primary.stop()
            async with asyncio.timeout(3 * WAIT):
                while True:
                    try:
                        await append(one, STREAM, b"after")
                    except StoreUnavailable:
                        continue
                    break
            await until(lambda: follower.gaps)
            assert one.epoch != epoch
            await append(one, STREAM, b"live")
            await follower.until(b"live")
            assert data_of(await read_all(one, STREAM))[-2:] == [b"after", b"live"]
            await follower.close()
    finally:
        servers.close()


async def test_cluster_nodes_without_cluster_url_are_rejected() -> None:
    servers = Cluster()
    try:
        with pytest.raises(LocalError, match=re.escape("redis+cluster://")):
            async with open_worker(servers.nodes[0].url):
                pass
        async with open_worker(f"{servers.url}?wait=1") as store:
            with pytest.raises(StoreUnavailable, match="fewer than 1 replicas"):
                await append(store, STREAM, b"no replica has it")
    finally:
        servers.close()
