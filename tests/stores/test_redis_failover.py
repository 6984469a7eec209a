import asyncio
from collections.abc import Iterator

import pytest

from hub_parts import Clients
from millstream._protocol.errors import LocalError
from millstream._stores.base import Gap, StoreUnavailable
from patience import WAIT
from redis_parts import RedisStore, Sentinels, open_worker, until, wait_until
from store_parts import Follower, append, data_of, read_all

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
