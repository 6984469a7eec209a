import asyncio
from collections.abc import AsyncIterator

import pytest

from millstream._stores.nats.address import parse_address
from millstream._stores.nats.store import NatsStore
from millstream.protocol import LocalError
from millstream.stores import Gap, Index, StoreFull, StoreUnavailable
from nats_parts import NatsBacking
from redis_parts import until
from store_parts import TTL, append, data_of, open_store

pytestmark = pytest.mark.server


@pytest.fixture
async def backing() -> AsyncIterator[NatsBacking]:
    """A namespace on one node."""
    backing = NatsBacking()
    yield backing
    await backing.close()


def test_nats_url_has_servers_login_replicas_and_namespace() -> None:
    address = parse_address("nats://ada:p%40ss@one:4223,two,[::1]:4224/?replicas=3&namespace=shop")
    assert address.servers == ("nats://one:4223", "nats://two:4222", "nats://[::1]:4224")
    assert (address.user, address.password, address.token) == ("ada", "p@ss", None)
    assert (address.replicas, address.namespace, address.tls) == (3, "shop", None)
    assert parse_address("nats://secret@one").token == "secret"
    assert parse_address("nats+tls://one").tls is not None
    assert "p@ss" not in repr(address)


def test_invalid_nats_urls_are_refused_without_the_password() -> None:
    for bad in ("nats://", "nats://a:p4ss@", "nats://one?replicas=9", "nats://one?namespace=a.b", "nats://one?x=1",
                "nats://one:0", "nats://u:p4ss@one:x", "nats://one/db", "nats://one?credentials=/nowhere"):  # fmt: skip
        with pytest.raises(LocalError) as refused:
            open_store(bad)
        assert "p4ss" not in str(refused.value)


async def test_unreachable_nats_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.nats.link.CONNECT_SECONDS", 0.3)
    with pytest.raises(LocalError, match=r"nats://127\.0\.0\.1:1"):
        await open_store("nats://ada:p4ss@127.0.0.1:1").open()


async def test_values_are_absent_after_expiry(backing: NatsBacking) -> None:
    kv = (await backing.worker()).kv
    await kv.put("session:a", b"1", 0.2)
    assert await kv.get("session:a") == b"1"

    async def gone() -> bool:
        return await kv.get("session:a") is None

    await until(gone)
    assert await kv.keys("session:") == []
    assert await kv.delete("session:a") is False
    assert await kv.compare_and_set("session:a", b"1", b"2", TTL) is False
    assert await kv.compare_and_set("session:a", None, b"2", TTL) is True
    assert await kv.get("session:a") == b"2"


async def test_expired_streams_are_unknown_and_restart(backing: NatsBacking) -> None:
    one, two = await backing.worker(), await backing.worker()
    old = await one.log.append("call:1", b"old", ttl=0.2, max_entries=9, seal=True)

    async def gone() -> bool:  # each worker estimates the server's clock
        return not await one.log.read("call:1", None) and not await two.log.newest("call:1", 5)

    await until(gone)
    assert await two.log.touch("call:1", TTL) is False
    new = await two.log.append("call:1", b"new", ttl=TTL, max_entries=9)
    assert data_of(await one.log.read("call:1", None)) == [b"new"]
    with pytest.raises(Gap):
        await one.log.read("call:1", old)
    assert (await one.log.append("call:1", b"more", ttl=TTL, max_entries=9)).offset > new.offset


async def test_touched_streams_keep_all_entries(backing: NatsBacking) -> None:
    one, two = await backing.worker(), await backing.worker()
    await one.log.append("call:1", b"a", ttl=1.0, max_entries=9)
    assert await two.log.touch("call:1", TTL)
    await one.log.append("call:2", b"a", ttl=1.0, max_entries=9)

    async def gone() -> bool:
        return await one.log.read("call:2", None) == []

    await until(gone)
    assert data_of(await two.log.read("call:1", None)) == [b"a"]
    await one.log.append("call:1", b"b", ttl=TTL, max_entries=9)
    assert data_of(await two.log.read("call:1", None)) == [b"a", b"b"]


async def test_unreferenced_entries_are_purged(backing: NatsBacking) -> None:
    store = await backing.worker()
    index = Index("hub:channel:news", TTL, 10)
    for number in range(600):
        await store.log.append("hub:journal", b"%d" % number, ttl=TTL, max_entries=20, index=index)
        await store.log.append("hub:journal", b"other", ttl=TTL, max_entries=20)

    async def purged() -> bool:
        link = store.backend._link
        return int((await link.info(f"{backing.namespace}-log-aHVi"))["state"]["messages"]) < 400

    await until(purged)
    assert data_of(await store.log.newest("hub:channel:news", 10)) == [b"%d" % number for number in range(590, 600)]
    assert data_of(await store.log.newest("hub:journal", 2)) == [b"599", b"other"]


async def test_append_with_a_lost_reply_is_not_repeated(backing: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await backing.worker()
    await append(store, "hub:journal", b"0")
    ask, lost = type(store.backend._link)._ask, 0

    async def lose(link: object, subject: str, *rest: object) -> object:
        nonlocal lost
        reply = await ask(store.backend._link, subject, *rest)  # type: ignore[arg-type]
        if ".log." in subject and lost < 2:
            lost += 1
            raise TimeoutError
        return reply

    monkeypatch.setattr(type(store.backend._link), "_ask", lose)
    (one,) = await append(store, "hub:journal", b"1")
    end = await store.log.append("call:1", b"end", ttl=TTL, max_entries=9, seal=True)
    assert [entry.position for entry in await store.log.read("hub:journal", None)][1:] == [one]
    assert [entry.position for entry in await store.log.read("call:1", None)] == [end]
    assert lost == 2


async def test_reads_after_an_election_return_every_known_entry(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await backing.worker(), await backing.worker()
    await append(one, "hub:journal", b"a")
    stale = {}
    for store in (one, two):
        link = store.backend.log._link
        last, publish = link.last, link.publish

        async def lag(stream: str, subject: str, link=link, last=last) -> object:
            found = await last(stream, subject)
            return stale.setdefault((link, subject), found) if ".log." in subject else found

        async def catch_up(stream: str, subject: str, *rest: object, link=link, publish=publish, **more: object) -> int:
            if ".touch." in subject:
                for each in [each for each in stale if each[0] is link]:
                    del stale[each]
            return await publish(stream, subject, *rest, **more)

        monkeypatch.setattr(link, "last", lag)
        monkeypatch.setattr(link, "publish", catch_up)
        assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    (position,) = await append(one, "hub:journal", b"b")
    assert data_of(await one.log.read("hub:journal", None)) == [b"a", b"b"]
    assert await two.log.read("hub:journal", position) == []
    assert len(stale) == 2


async def test_recreated_jetstream_streams_use_new_positions(backing: NatsBacking) -> None:
    store: NatsStore = await backing.worker()
    (old,) = await append(store, "hub:journal", b"old")
    await store.backend._link.api(f"STREAM.DELETE.{backing.namespace}-log-aHVi")
    with pytest.raises(Gap):
        await store.log.read("hub:journal", old)
    (new,) = await append(store, "hub:journal", b"new")
    assert new.offset > old.offset
    with pytest.raises(Gap):
        await store.log.read("hub:journal", old)
    assert data_of(await store.log.read("hub:journal", None)) == [b"new"]


async def test_values_above_the_server_limit_are_refused(backing: NatsBacking) -> None:
    store = await backing.worker()
    await store.kv.put("session:a", b"1", TTL)
    with pytest.raises(StoreFull):
        await store.kv.put("session:a", bytes(9 * 2**20), TTL)
    assert await store.kv.get("session:a") == b"1"
    assert await asyncio.gather(*(store.kv.get("session:a") for _ in range(50))) == [b"1"] * 50


async def test_the_epoch_is_read_again_until_jetstream_responds(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = (await backing.worker()).backend._link
    find, failures = link._find_epoch, [StoreUnavailable("No node leads yet.")]

    async def fail_once() -> None:
        if failures:
            raise failures.pop()
        await find()

    monkeypatch.setattr(link, "_find_epoch", fail_once)
    link.epoch, known = "of deleted streams", link.epoch
    await link._on_reconnect()
    await until(lambda: link.epoch == known)
