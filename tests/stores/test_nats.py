import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from millstream._stores.base import OwnerQuotaExceeded
from millstream._stores.nats.link import StreamMessage, parse_address, read_token
from millstream._stores.nats.store import NatsBackend
from millstream._stores.tail import Tail
from millstream._troubles import Troubles
from millstream.extensions import LocalError
from millstream.stores import Entry, Gap, Index, RateCharge, StoreFull, StoreUnavailable
from nats_parts import NatsBacking, NatsServer, NatsStore, shared_server
from patience import WAIT
from redis_parts import until
from store_parts import TTL, append, data_of, open_store

pytestmark = pytest.mark.server


@pytest.fixture
async def backing() -> AsyncIterator[NatsBacking]:
    """A namespace on one node."""
    backing = NatsBacking()
    yield backing
    await backing.close()


def test_nats_url_contains_servers_login_replicas_and_namespace() -> None:
    address = parse_address("nats://ada:p%40ss@one:4223,two,[::1]:4224/?replicas=3&namespace=shop")
    assert address.servers == ("nats://one:4223", "nats://two:4222", "nats://[::1]:4224")
    assert (address.user, address.password, address.token) == ("ada", "p@ss", None)
    assert (address.replicas, address.namespace, address.tls) == (3, "shop", None)
    assert parse_address("nats://secret@one").token == "secret"
    assert parse_address("nats+tls://one").tls is not None
    assert "p@ss" not in repr(address)


def test_errors_for_invalid_nats_urls_hide_the_password() -> None:
    for bad in ("nats://", "nats://a:p4ss@", "nats://one?replicas=9", "nats://one?namespace=a.b", "nats://one?x=1",
                "nats://one:0", "nats://u:p4ss@one:x", "nats://one/db", "nats://one?credentials=/nowhere"):  # fmt: skip
        with pytest.raises(LocalError) as refused:
            open_store(bad)
        assert "p4ss" not in str(refused.value)


async def test_unreachable_nats_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.nats.link.CONNECT_SECONDS", 3)
    with pytest.raises(
        LocalError, match=r"at nats://127\.0\.0\.1:1: .*Connect call failed.*Start it, or correct its URL"
    ):
        await open_store("nats://ada:p4ss@127.0.0.1:1").open()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("authorization { user: ada, password: other }", "Authorization Violation"),
        ("", "Start the NATS server with -js"),
    ],
)
async def test_nats_server_that_cannot_be_used_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, why: str
) -> None:
    monkeypatch.setattr("millstream._stores.nats.link.CONNECT_SECONDS", 3)
    monkeypatch.setattr("millstream._stores.nats.link.DEADLINE", 1)
    server = NatsServer(tmp_path, "plain", setting=setting)
    try:
        await server.wait()
        with pytest.raises((LocalError, StoreUnavailable), match=why):
            await open_store(f"nats://ada:p4ss@127.0.0.1:{server.port}").open()
    finally:
        server.close()


# nats-py leaves refused connections open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_rejected_password_is_named_after_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.nats.link.DEADLINE", 1)

    def setting(password: str) -> str:
        allowed = f"authorization {{ user: ada, password: {password} }}"
        return f'{allowed}\njetstream {{ store_dir: "{tmp_path}/data" }}'

    server = NatsServer(tmp_path, "guarded", setting=setting("first"))
    try:
        await server.wait()
        store = open_store(f"nats://ada:first@127.0.0.1:{server.port}")
        await store.open()
        for password, says in (("second", "Authorization Violation"), ("first", "")):
            server.kill()
            server._setting = setting(password)
            server.start()

            async def fault(says: str = says) -> bool:
                try:
                    await store.kv.put("a", b"1", TTL)
                except StoreUnavailable as exc:
                    return bool(says) and says in str(exc)
                return not says

            await until(fault)
        await store.close()
    finally:
        server.close()


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


async def test_streams_live_exactly_as_long_as_they_say(backing: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    one = await backing.worker()
    await one.log.append("call:1", b"a", ttl=3_600, max_entries=9)
    for passed, expected in ((3_000, [b"a"]), (4_200, [])):
        monkeypatch.setattr("millstream._stores.nats.link.NatsLink.time", lambda _, passed=passed: time() + passed)
        assert data_of(await one.log.read("call:1", None)) == expected


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


async def test_replies_with_a_few_messages_are_joined(backing: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await backing.worker()
    batch, sizes = store.backend._link.batch, iter((1, 3, 1))

    async def few(stream: str, subject: str, seq: int, most: int, max_bytes: int) -> list[StreamMessage]:
        return await batch(stream, subject, seq, min(most, next(sizes)), max_bytes)

    await append(store, "hub:journal", b"0", b"1", b"2", b"3", b"4")
    monkeypatch.setattr(store.backend._link, "batch", few)
    assert data_of(await store.log.read("hub:journal", None)) == [b"0", b"1", b"2", b"3", b"4"]


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


async def break_connection(store: NatsBackend) -> None:
    """Close the connection of a store on uvloop, where the next write raises RuntimeError.

    The error would also end the tasks that connect again.
    """
    client = store._link.client
    for task in (client._reading_task, client._flusher_task):
        task.cancel()
    client._transport._io_writer.transport.abort()
    await until(client._flusher_task.done)


def test_a_closed_connection_is_replaced_and_the_append_repeated() -> None:
    async def run() -> None:
        server = shared_server()
        await server.wait()
        store = NatsBackend(parse_address(f"nats://127.0.0.1:{server.port}?namespace=t{secrets.token_hex(6)}"))
        await store.open()
        await append(store, "hub:journal", b"0")
        await break_connection(store)
        await append(store, "hub:journal", b"1", b"2")
        assert data_of(await store.log.read("hub:journal", None)) == [b"0", b"1", b"2"]
        assert store._link.client.stats["reconnects"] == 1
        await store.close()

    uvloop.run(run())


def test_message_that_cannot_be_sent_is_a_store_failure() -> None:
    async def run() -> None:
        server = shared_server()
        await server.wait()
        store = NatsBackend(parse_address(f"nats://127.0.0.1:{server.port}"))
        await store.open()
        await break_connection(store)
        with pytest.raises(StoreUnavailable, match="The NATS store didn't respond"):
            await store._link.send("anything", b"")
        await store.close()

    uvloop.run(run())


async def test_rejected_requests_are_reported_as_store_failures(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backing.worker()
    await append(store, "hub:journal", b"0")
    await append(store, "call:1", b"0")
    await store.kv.put("session:a", b"0", TTL)
    rejected = []

    async def reject(subject: str, *_: object) -> object:
        if not subject.endswith("aW5ib3g"):  # `inbox`, which each worker reads in the background
            rejected.append(subject)
        error = {"code": 500, "err_code": 10009, "description": "JetStream cluster can not handle request"}
        return SimpleNamespace(data=json.dumps({"error": error}))

    monkeypatch.setattr(store.backend._link, "_ask", reject)
    log, kv = store.log, store.kv
    for attempt in (
        lambda: append(store, "hub:journal", b"1"),
        lambda: append(store, "call:1", b"1"),
        lambda: append(store, "call:2", b"1"),
        lambda: log.read("hub:journal", None),
        lambda: log.newest("hub:journal", 5),
        lambda: log.touch("call:1", TTL),
        lambda: log.trim("call:1"),
        lambda: kv.get("session:a"),
        lambda: kv.put("session:a", b"1", TTL),
        lambda: kv.compare_and_set("session:b", None, b"1", TTL),
        lambda: kv.delete("session:a"),
        lambda: kv.keys("session:"),
        lambda: store.backend.charge("worker", [RateCharge("ada", 1, 1)], ()),
    ):
        rejected.clear()
        with pytest.raises(StoreUnavailable, match="can not handle request"):
            await attempt()
        assert len(rejected) <= 2


async def test_reads_wait_for_an_entry_that_is_being_stored(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backing.worker()
    await append(store, "hub:journal", b"0")
    ask, busy = store.backend._link._ask, []

    async def be_busy(subject: str, *rest: object) -> object:
        if ".log." in subject and len(busy) < 2:
            busy.append(subject)
            code, err_code = (409, 10158) if len(busy) == 1 else (429, 10167)
            return SimpleNamespace(data=json.dumps({"error": {"code": code, "err_code": err_code}}))
        return await ask(subject, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store.backend._link, "_ask", be_busy)
    (position,) = await append(store, "hub:journal", b"1")
    assert len(busy) == 2
    assert (await store.log.newest("hub:journal", 1))[0].position == position


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


async def test_reads_up_to_a_settled_position_return_every_entry_after_an_election(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await backing.worker(), await backing.worker()
    link = one.backend._link
    stop = one.log.listen("hub:journal", lambda _: None, topic="a")
    index = Index("hub:channel:b", TTL, 9)
    for data in (b"1", b"2"):
        last = await two.log.append("hub:journal", data, ttl=TTL, max_entries=9, index=index, topic="b")
    begin = (await two.log.newest("hub:journal", 2))[0].position
    await one.log.wait_until_listening("hub:journal")
    assert data_of(await one.log.newest("hub:channel:b", 9)) == [b"1", b"2"]
    get, batch, publish, stale = link._get, link.batch, link.publish, True

    async def lag(stream: str, body: dict[str, object]) -> StreamMessage | None:
        found = await get(stream, body)
        if stale and found is not None and found.seq == last.offset:
            return await get(stream, {"seq": begin.offset}) if "last_by_subj" in body else None
        return found

    async def catch_up(stream: str, subject: str, *rest: object, **more: object) -> object:
        nonlocal stale
        stale = stale and ".touch." not in subject
        return await publish(stream, subject, *rest, **more)  # type: ignore[arg-type]

    async def lag_too(*args: object) -> list[StreamMessage]:
        found = await batch(*args)  # type: ignore[arg-type]
        return [each for each in found if each.seq <= begin.offset] if stale else found

    monkeypatch.setattr(link, "_get", lag)
    monkeypatch.setattr(link, "batch", lag_too)
    monkeypatch.setattr(link, "publish", catch_up)
    assert data_of(await one.log.read("hub:journal", begin)) == [b"2"]
    stale = True
    assert data_of(await one.log.newest("hub:channel:b", 9)) == [b"1", b"2"]
    stop()


async def test_topics_added_during_the_creation_of_a_consumer_are_sent(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, heard, stops = await backing.worker(), list[bytes](), list[Callable[[], None]]()
    link = store.backend._link
    api = link.api

    async def add_topic(subject: str, body: object = None) -> object:
        if subject.startswith("CONSUMER.CREATE") and len(stops) == 1:
            stops.append(store.log.listen("hub:journal", lambda entry: heard.append(entry.data), topic="b"))
        return await api(subject, body)

    monkeypatch.setattr(link, "api", add_topic)
    real = store.backend.log._consumers
    stops.append(store.log.listen("hub:journal", lambda _: None, topic="a"))
    await real["hub:journal"].created.wait()
    assert await filters_of(store, "hub:journal") == ["a.a", "b.b"]
    await store.log.append("hub:journal", b"1", ttl=TTL, max_entries=9, topic="b")
    await until(lambda: heard == [b"1"])
    for stop in stops:
        stop()


async def test_topics_added_while_a_consumer_is_replaced_lose_nothing(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, got, gaps = await backing.worker(), list[Entry](), list[Gap]()
    (start,) = await append(store, "hub:journal", b"0")
    tail = Tail(store.log, Troubles(), "hub:journal", start, got.extend, gaps.append, topic="")
    tail.follow("a")
    await tail.catch_up()
    running, link = asyncio.create_task(tail.run()), store.backend._link
    consumer, api, created = store.log._consumers["hub:journal"], link.api, list[str]()

    async def create(subject: str, body: object = None) -> object:
        made = await api(subject, body)
        if subject.startswith("CONSUMER.CREATE") and not created:
            created.append(subject)
            tail.follow("b")
            await tail.settle()
            for topic in ("b", "a"):
                last = await store.log.append("hub:journal", topic.encode(), ttl=TTL, max_entries=9, topic=topic)
            await until(lambda: consumer.seq >= last.offset)
        return made

    monkeypatch.setattr(link, "api", create)
    consumer.restart()
    await until(lambda: len(got) > 1)
    assert data_of(got) == [b"b", b"a"]
    assert gaps == []
    tail.stop()
    running.cancel()


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


async def test_values_above_the_server_limit_are_rejected(backing: NatsBacking) -> None:
    store = await backing.worker()
    await store.kv.put("session:a", b"1", TTL)
    with pytest.raises(StoreFull):
        await store.kv.put("session:a", bytes(9 * 2**20), TTL)
    assert await store.kv.get("session:a") == b"1"
    assert await asyncio.gather(*(store.kv.get("session:a") for _ in range(50))) == [b"1"] * 50


async def filters_of(store: NatsStore, stream: str) -> list[str]:
    """Return the last segments of the filters of a stream's only consumer."""
    link, name = store.backend._link, store.log._main(stream).stream
    (consumer,) = (await link.api(f"CONSUMER.LIST.{name}"))["consumers"]
    config = consumer["config"]
    subjects = config.get("filter_subjects") or [config["filter_subject"]]
    parts = [subject.split(".") for subject in subjects if ".log." in subject]
    return sorted(
        ".".join(each if each == ">" else read_token(each) for each in part[6:] or part[4:]) for part in parts
    )


async def test_number_of_remembered_share_sizes_is_bounded(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.nats.store.MAX_SIZES", 10)
    store = await backing.worker()
    for number in range(40):
        await store.kv.put(f"session:~owner{number}.a", bytes(100), TTL)
        await store.kv.put(f"result:~owner{number}.a", bytes(100), TTL, lossy=True)
    assert len(store.backend.kv._sizes) <= 12
    assert await store.kv.get("session:~owner0.a") == bytes(100)


async def test_full_share_is_not_read_again_for_each_value_that_does_not_fit(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.nats.store.ROOM", 256 * 1024)
    monkeypatch.setattr("millstream._stores.nats.store._FRESH", 1000.0)
    kv, link, reads = (await backing.worker()).kv, (await backing.worker()).backend._link, list[str]()
    read = link.batch

    async def batch(stream: str, *options: Any) -> Any:
        reads.append(stream)
        return await read(stream, *options)

    writer = await backing.worker()
    monkeypatch.setattr(writer.backend._link, "batch", batch)
    with suppress(OwnerQuotaExceeded):
        for number in range(100):
            await writer.kv.put(f"session:~eve.{number}", bytes(4_000), TTL)
    before = len(reads)
    for number in range(20):
        with pytest.raises(OwnerQuotaExceeded):
            await writer.kv.put(f"session:~eve.{number}", bytes(8_000 + number), TTL)
    assert len(reads) == before
    assert await writer.kv.delete("session:~eve.0")
    await writer.kv.put("session:~eve.new", bytes(4_000), TTL)
    assert await kv.get("session:~eve.new") == bytes(4_000)


async def test_concurrent_values_do_not_exceed_a_share(backing: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.nats.store.ROOM", 256 * 1024)
    store = await backing.worker()
    for number in range(10):
        await store.kv.put(f"session:~eve.{number}", bytes(4_000), TTL)
    store.backend.kv._sizes.clear()  # as for a worker that has just started
    work = [store.kv.put(f"session:~eve.more{number}", bytes(4_000), TTL) for number in range(60)]
    refused = await asyncio.gather(*work, return_exceptions=True)
    assert {type(each) for each in refused} == {OwnerQuotaExceeded, type(None)}
    kept = await store.kv.keys("session:~eve.")
    assert 25 <= len(kept) <= 256 * 1024 // 2 // 4_000


async def test_filters_widen_when_there_are_many_topics(backing: NatsBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.nats.log._MAX_FILTERS", 3)
    store = await backing.worker()
    log, heard, stops = store.log, list[bytes](), list[Callable[[], None]]()

    async def follow(*topics: str) -> list[str]:
        stops.extend(log.listen("hub:journal", lambda entry: heard.append(entry.data), topic=each) for each in topics)
        await log.wait_until_listening("hub:journal")
        return await filters_of(store, "hub:journal")

    assert await follow("a.1", "b.x.y", "c") == ["a.a.1", "b.b.x.y", "c.c"]
    assert await follow("a.2") == ["a.>", "b.>", "c.>"]
    assert await follow("d", "e.") == [">"]
    while len(stops) > 2:
        stops.pop()()
    assert await follow("a.") == ["a.>", "b.b.x.y"]
    for topic in ("a.1", "a.3", "b.x.y", "b.x", "c", "d"):
        await log.append("hub:journal", topic.encode(), ttl=TTL, max_entries=9, topic=topic)
    await until(lambda: len(heard) >= 4)
    assert heard == [b"a.1", b"a.1", b"a.3", b"b.x.y"]
    for stop in stops:
        stop()


async def test_added_topics_are_sent_without_their_old_entries(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.nats.log._FRESH_SECONDS", 0.0)
    store, heard = await backing.worker(), list[bytes]()
    stops = [store.log.listen("hub:journal", lambda _: None, topic="a")]
    await store.log.wait_until_listening("hub:journal")
    for number in range(20):
        last = await store.log.append("hub:journal", b"%d" % number, ttl=TTL, max_entries=99, topic="b")
    stops.append(store.log.listen("hub:journal", lambda entry: heard.append(entry.data), topic="b"))
    assert await store.log.wait_until_listening("hub:journal") == last
    await store.log.append("hub:journal", b"new", ttl=TTL, max_entries=99, topic="b")
    await until(lambda: b"new" in heard)
    assert heard == [b"new"]
    for stop in stops:
        stop()


async def test_listeners_do_not_wait_for_a_lost_consumer(backing: NatsBacking) -> None:
    store, got, gaps = await backing.worker(), list[Entry](), list[Gap]()
    link, stream = store.backend._link, store.log._main("hub:journal").stream
    (start,) = await append(store, "hub:journal", b"0")
    tail = Tail(store.log, Troubles(), "hub:journal", start, got.extend, gaps.append, topic="")
    tail.follow("a")
    await tail.catch_up()
    running = asyncio.create_task(tail.run())
    for name in (await link.api(f"CONSUMER.NAMES.{stream}"))["consumers"]:
        await link.api(f"CONSUMER.DELETE.{stream}.{name}")
    tail.follow("b")
    assert await store.log.wait_until_listening("hub:journal") is None
    await store.log.append("hub:journal", b"1", ttl=TTL, max_entries=9, topic="a")
    await until(lambda: data_of(got) == [b"1"])
    assert gaps == []
    tail.stop()
    running.cancel()


async def test_listeners_do_not_wait_for_a_consumer_on_a_node_that_failed(
    backing: NatsBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._stores.nats.log.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("millstream._stores.nats.log.WAIT_SECONDS", 0.1)
    store, heard, interruptions = await backing.worker(), list[bytes](), list[None]()
    link, attempts = store.backend._link, list[str]()
    api = link.api

    async def create(subject: str, body: object = None) -> object:
        if subject.startswith("CONSUMER.CREATE"):
            attempts.append(subject)
            if len(attempts) < 3:
                await asyncio.Event().wait()
            monkeypatch.setattr("millstream._stores.nats.log.WAIT_SECONDS", WAIT)
        return await api(subject, body)

    monkeypatch.setattr(link, "api", create)
    stop = store.log.listen(
        "hub:journal",
        lambda entry: heard.append(entry.data),
        interrupted=lambda: interruptions.append(None),
        topic="a",
    )
    assert await store.log.wait_until_listening("hub:journal") is None
    await until(lambda: bool(store.log._consumers["hub:journal"].created.is_set()))
    assert interruptions
    await store.log.append("hub:journal", b"1", ttl=TTL, max_entries=9, topic="a")
    await until(lambda: heard == [b"1"])
    stop()


async def test_epoch_is_read_again_until_jetstream_responds(
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
