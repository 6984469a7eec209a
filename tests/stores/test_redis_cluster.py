import asyncio
import itertools
import re
from binascii import crc_hqx

import pytest

from millstream.extensions import LocalError
from millstream.stores import StoreUnavailable
from patience import WAIT
from redis_parts import Cluster, RedisServer, open_worker, until
from store_parts import TTL, Follower, append, data_of, read_all

pytestmark = [pytest.mark.server, pytest.mark.nightly]
STREAM = "hub:journal"


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
