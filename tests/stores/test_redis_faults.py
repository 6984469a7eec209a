"""What faults do to the store in Redis, and that it doesn't fill its server."""

import asyncio
import signal
from functools import partial

import pytest

from millstream._stores.base import Gap, Index, StoreUnavailable, Told
from millstream._stores.rates import Seat
from millstream._stores.redis.store import RedisStore
from millstream._stores.redis.workers import _UNANSWERED, BEAT
from millstream._stores.redis.workers import LEASE as USUAL_LEASE
from patience import WAIT
from redis_parts import LEASE, RedisServer, opened, quiet, until
from redis_wire import Proxy
from store_parts import TTL, Heard, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"
LEASES = "millstream:{j0}:w"


async def test_after_flushall_the_epoch_is_new_and_everybody_is_told(server: RedisServer) -> None:
    """The contract of `Store.epoch` and `Store.watch`."""
    async with opened(server.url) as one, opened(server.url) as two:
        changes = [asyncio.Event(), asyncio.Event()]
        before = one.epoch
        for store, changed in zip((one, two), changes, strict=True):
            store.watch(changed.set)
        old = await append(one, STREAM, b"old")
        await two.members.join("chat", "ann", b"Ann", Told("hub:visits", b"+ann", TTL, 10))
        server.ask("FLUSHALL")
        new = await append(one, STREAM, b"new")
        async with asyncio.timeout(WAIT):
            for changed in changes:
                await changed.wait()
        assert one.epoch == two.epoch == new[0].epoch != before
        assert new[0].offset > old[0].offset + 1
        with pytest.raises(Gap):
            await two.log.read(STREAM, old[0])
        await until(lambda: one.members.present("chat"))


async def test_a_redis_that_lost_everything_is_used_again(server: RedisServer) -> None:
    """Restarted without files: sessions and events are gone, and every reader is told."""
    async with opened(server.url) as store:
        before = store.epoch
        old = await append(store, STREAM, b"old")
        server.stop()
        server.start()
        new = await append(store, STREAM, b"new")
        assert store.epoch == new[0].epoch != before
        with pytest.raises(Gap):
            await store.log.read(STREAM, old[0])
        assert data_of(await read_all(store, STREAM)) == [b"new"]


async def test_a_redis_with_an_append_only_file_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarted with its file: the epoch stays, if the worker that knows what was there comes in time."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with opened(server.url) as store:
            epoch = store.epoch
            positions = await append(store, STREAM, *(b"%d" % n for n in range(20)))
            server.stop()
            server.start()
            positions += await append(store, STREAM, b"20")
            assert [entry.position for entry in await read_all(store, STREAM)] == positions
            assert positions[-1].offset == positions[0].offset + 20
            assert store.epoch == epoch
    finally:
        server.close()


@pytest.mark.impatient
async def test_a_redis_that_stands_still_is_an_error_after_a_bounded_wait_and_then_works(server: RedisServer) -> None:
    """A publish waits for some seconds, and never succeeds before the store has the event."""
    async with opened(server.url) as store:
        await append(store, STREAM, b"before")
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                await append(store, STREAM, b"lost, or late")
        finally:
            server.process.send_signal(signal.SIGCONT)
        (after,) = await append(store, STREAM, b"after")
        found = await read_all(store, STREAM)
        assert [data for data in data_of(found) if data != b"lost, or late"] == [b"before", b"after"]
        assert len(found) <= 3
        assert found[-1].position == after


async def test_an_append_whose_reply_got_lost_is_made_once(server: RedisServer) -> None:
    """The contract of `EventLog.append`: a store that tries again recognizes what it has."""
    async with Proxy(server.port) as wire, opened(f"redis://127.0.0.1:{wire.port}") as store:
        await quiet(store)
        before = await append(store, STREAM, b"before")
        wire.deaf = True
        names = [STREAM, "call:session:1"] * 20
        tasks = [asyncio.create_task(append(store, name, b"%d" % n)) for n, name in enumerate(names)]
        joining = asyncio.create_task(store.members.join("chat", "ann", b"", Told(STREAM, b"+", TTL, 99)))
        sent = asyncio.create_task(store.bus.send(store.workers.me, "inbox", b"once"))
        inbox = Heard()
        store.bus.subscribe("inbox", inbox)
        await until(lambda: server.ask("XLEN", "millstream:{j0}:l:hub:journal") == 21 + 2)
        wire.deaf = False
        wire.cut()
        positions, joined = await asyncio.gather(*tasks), await joining
        assert await sent
        assert await store.bus.send(store.workers.me, "inbox", b"end")
        assert await inbox.until(b"end") == [b"once", b"end"]
        journal = await read_all(store, STREAM)
        assert sorted(data_of(journal)) == sorted([b"warm", b"before", b"+", *(b"%d" % n for n in range(0, 40, 2))])
        assert len(await read_all(store, "call:session:1")) == 20
        own = {entry.data: entry.position for entry in journal}
        assert joined == (b"", own[b"+"])
        assert [positions[n][0] for n in range(0, 40, 2)] == [own[b"%d" % n] for n in range(0, 40, 2)]
        assert journal[-1].position.offset == before[0].offset + 21


async def test_connections_that_break_or_are_half_closed_are_made_anew(server: RedisServer) -> None:
    """Nobody who listens misses anything, because reading goes on behind the last entry."""
    async with Proxy(server.port) as wire, opened(f"redis://127.0.0.1:{wire.port}") as store:
        heard = Heard()
        store.log.listen(STREAM, heard, interrupted=lambda: pytest.fail("nothing was lost"))
        await store.log.listening(STREAM)
        for n, fault in enumerate([wire.cut, wire.half_close] * 3):
            fault()
            await append(store, STREAM, b"%d" % n)
        end = (await append(store, STREAM, b"end"))[0]
        await until(lambda: heard.items and heard.items[-1].position == end)
        assert data_of(heard.items) == [*(b"%d" % n for n in range(6)), b"end"]


async def test_a_reader_that_silently_stopped_is_noticed_and_connects_again(server: RedisServer) -> None:
    """A connection can look healthy and bring nothing any more: each beat sends a probe through it. Our bound is ten
    seconds: as many beats as may go unanswered, the one that notices, and one more before the first of them.
    """
    assert (_UNANSWERED + 2) * BEAT * USUAL_LEASE < 10
    async with Proxy(server.port) as wire, opened(f"redis://127.0.0.1:{wire.port}") as store:
        heard = Heard()
        store.log.listen(STREAM, heard)
        await store.log.listening(STREAM)
        await until(lambda: store._reader._link)
        reader = store._reader._link
        assert reader is not None
        reader.data_received = lambda data: None  # type: ignore[method-assign]  it hears nothing
        (position,) = await append(store, STREAM, b"event")
        await until(lambda: heard.items)
        assert heard.items[0].position == position
        assert store._reader._link is not reader


async def test_a_worker_that_lost_its_lease_goes_on_under_a_new_name(server: RedisServer) -> None:
    """The contract of `Workers`: what was given to the old one is void, and it vouches again."""
    async with opened(server.url) as store, opened(server.url) as other:
        told = Told("hub:visits", b"+ann", TTL, 10)
        await store.members.join("chat", "ann", b"Ann", told)
        changed, interrupted = asyncio.Event(), asyncio.Event()
        store.workers.watch(changed.set)
        store.bus.subscribe("topic", Heard(), interrupted=interrupted.set)
        old = store.workers.me
        server.ask("ZADD", LEASES, "1", old)
        async with asyncio.timeout(WAIT):
            while store.workers.me == old:
                await changed.wait()
                changed.clear()
            await interrupted.wait()
        assert not await other.bus.send(old, "topic", b"void")
        assert await other.members.abandoned() == []
        assert await other.members.present("chat") == [("ann", b"Ann")]


async def test_the_end_of_a_lease_is_seen_when_it_comes_and_not_at_the_next_beat(server: RedisServer) -> None:
    """The contract of `Workers.watch`. A fixed defect: clients of a dead worker waited for up to a beat more."""
    long = 600.0  # whose beat comes after minutes
    async with opened(server.url, lease=long) as store:
        changed = asyncio.Event()
        store.workers.watch(changed.set)
        seconds, micros = server.ask("TIME")
        end = int(seconds) * 1_000_000 + int(micros) + 2_000_000
        server.ask("ZADD", LEASES, str(end), "dying")
        await store.workers.beat()
        store.workers.hurry()
        async with asyncio.timeout(WAIT):
            while "dying" in store.workers._living:
                await changed.wait()
                changed.clear()
        assert not await store.workers.alive("dying")


async def test_workers_renew_their_leases_and_hear_of_each_other_by_themselves(server: RedisServer) -> None:
    """The contract of `Workers`, with nobody who tells them to look."""
    async with opened(server.url) as one:
        changed = asyncio.Event()
        one.workers.watch(changed.set)
        async with opened(server.url) as two:
            async with asyncio.timeout(WAIT):
                await changed.wait()
            for each in (one, two):
                await until(partial(_renews, server, each))


async def _renews(server: RedisServer, store: RedisStore) -> bool:
    """Whether it renews its lease before that is over, which it can't where the machine stands still."""
    name = store.workers.me
    end = float(server.ask("ZSCORE", LEASES, name) or 0)
    await until(lambda: store.workers.me != name or float(server.ask("ZSCORE", LEASES, name) or 0) > end)
    seconds, micros = server.ask("TIME")
    return store.workers.me == name and int(seconds) * 1e6 + int(micros) < end


async def test_the_death_of_a_worker_that_was_only_asked_about_is_told(server: RedisServer) -> None:
    """Fixed defect: where it lived for less than the time between two beats, those who waited for its end waited on."""
    async with opened(server.url, 600.0) as one:
        await quiet(one)
        changed = asyncio.Event()
        one.workers.watch(changed.set)
        server.ask("ZADD", LEASES, f"{int(server.ask('TIME')[0]) + 300}000000", "0123456789ab")
        assert await one.workers.alive("0123456789ab")
        server.ask("ZREM", LEASES, "0123456789ab")
        await one.workers.beat()
        assert changed.is_set()
        assert not await one.workers.alive("0123456789ab")


async def test_after_a_pause_of_redis_nobody_counts_as_dead_who_could_not_renew_a_lease(server: RedisServer) -> None:
    """A pause that is longer than a lease must not make every member leave and come again."""
    async with opened(server.url, 600.0) as one, opened(server.url, 600.0) as two:
        await one.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 10))
        names = [one.workers.me, two.workers.me]
        for name in names:
            server.ask("ZADD", LEASES, "1000000", name)
        await two.workers.beat()
        assert await two.members.abandoned() == []
        await one.workers.beat()
        assert [one.workers.me, two.workers.me] == names
        assert await two.members.present("chat") == [("ann", b"Ann")]
        assert await two.workers.alive(names[0])


async def test_who_comes_first_after_a_pause_of_redis_takes_nothing_from_those_who_could_not_renew_a_lease(
    server: RedisServer,
) -> None:
    """Fixed defect: a worker that began then was the only one with a lease, so all others went on under new names, and
    what they ran counted as left behind. Whoever took a seat took those of the others, too.
    """
    async with opened(server.url, 600.0) as one, opened(server.url, 600.0) as two:
        await one.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 10))
        assert (await one.rates.take([Seat("tool", 1, "call")])).taken[0].amount
        names = [one.workers.me, two.workers.me]
        just_now = int(server.ask("TIME")[0]) - 1
        for name in names:
            server.ask("ZADD", LEASES, f"{just_now}000000", name)
        assert not (await two.rates.take([Seat("tool", 1, "another")])).taken[0].amount
        async with opened(server.url, 600.0) as newcomer:
            assert await newcomer.members.abandoned() == []
            assert await newcomer.members.present("chat") == [("ann", b"Ann")]
            for store in (one, two):
                await store.workers.beat()
            assert [one.workers.me, two.workers.me] == names


async def test_a_redis_that_has_no_connection_left_is_waited_for(server: RedisServer) -> None:
    """Fixed defect: whoever asked just then got an error at once, although somebody else's connection soon ended."""
    async with opened(server.url) as store:
        await quiet(store)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"CONFIG SET maxclients 1\r\n")  # those that are connected stay
        assert await reader.readline() == b"+OK\r\n"
        for link in list(store._commands._links.values()):
            link.close()
        with pytest.raises(OSError, match="max number of clients"):
            await store._commands.link(LEASES)
        appending = asyncio.create_task(append(store, STREAM, b"waits"))
        await until(lambda: store._commands._connecting)
        writer.write(b"CONFIG SET maxclients 100\r\n")
        await appending
        writer.close()
        assert data_of(await read_all(store, STREAM)) == [b"warm", b"waits"]


async def test_when_the_clock_of_redis_is_set_forward_nobody_counts_as_dead_meanwhile(server: RedisServer) -> None:
    """Fixed defect: until somebody's beat, messages were refused, members were absent, and given out as having left."""
    async with opened(server.url, 600.0) as one, opened(server.url, 600.0) as two:
        for store in (one, two):
            await quiet(store)
        inbox = Heard()
        one.bus.subscribe("inbox", inbox)
        await one.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 10))
        for store in (one, two):
            server.ask("ZADD", LEASES, "2000000000", store.workers.me)
        server.ask("ZADD", LEASES, "1", "dead")
        assert await two.members.abandoned() == []
        assert await two.members.present("chat") == [("ann", b"Ann")]
        assert await two.bus.send(one.workers.me, "inbox", b"heard")
        assert not await two.bus.send("dead", "inbox", b"void")
        await inbox.until(b"heard")


async def test_when_the_clock_of_redis_is_set_back_the_dead_are_noticed_all_the_same(server: RedisServer) -> None:
    """Fixed defect: their leases lasted for as much longer as the clock had been ahead."""
    async with opened(server.url) as store:
        server.ask("ZADD", LEASES, str(int(server.ask("TIME")[0] + b"000000") + 3_600_000_000), "dying")
        await store.workers.beat()
        until_ = int(server.ask("ZSCORE", LEASES, "dying"))
        assert until_ <= int(server.ask("TIME")[0] + b"000000") + int(LEASE * 2e6)


async def test_random_channels_cannot_fill_the_server(server: RedisServer) -> None:
    """Each kind of index has so much room, and what was appended to the longest ago goes first."""
    async with opened(server.url) as store:
        store.log._room = 200_000
        for n in range(300):
            await store.log.append(
                STREAM, bytes(1000), ttl=TTL, max_entries=10, index=Index(f"hub:channel:{n}", TTL, 10)
            )
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=10, index=Index("mailbox:ann", TTL, 10))
        held = [n for n in range(300) if await store.log.newest(f"hub:channel:{n}", 1)]
        assert held == list(range(300 - len(held), 300))
        assert 20 < len(held) < 200
        assert await store.log.newest("mailbox:ann", 1)


async def test_every_key_has_an_end(server: RedisServer) -> None:
    """A Redis that is shared with others isn't left full of what nobody uses any more."""
    async with opened(server.url) as store:
        await quiet(store)
        await store.kv.put("session:a", b"", TTL)
        await store.kv.put("seen:a", b"", TTL, lossy=True)
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=10, index=Index("mailbox:ann", TTL, 10))
        await store.bus.send(store.workers.me, "t", b"")
        store.log.listen("call:a:b", Heard())
        await store.log.listening("call:a:b")
        await store.workers.beat()
        keys = server.ask("KEYS", "*")
        assert len(keys) > 10
        assert {key: server.ask("PTTL", key.decode()) for key in keys if server.ask("PTTL", key.decode()) < 0} == {}


async def test_two_servers_with_their_own_prefixes_share_one_redis(server: RedisServer) -> None:
    """The option of the URL: neither sees the other."""
    async with opened(f"{server.url}?prefix=a:") as one, opened(f"{server.url}?prefix=b:") as two:
        await one.kv.put("key", b"one", TTL)
        await append(one, STREAM, b"one")
        assert await two.kv.get("key") is None
        assert await two.kv.keys("") == []
        assert await two.log.newest(STREAM, 1) == []
        assert one.epoch != two.epoch
        assert await one.kv.keys("") == ["key"]
