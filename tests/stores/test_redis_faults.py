import asyncio
import signal

import pytest

from hub_parts import Clients
from millstream._stores.base import Gap, Index, StoreUnavailable
from millstream._stores.workers import LeasedWorker, WorkerTable, update_worker_table
from patience import WAIT
from redis_parts import RedisServer, open_worker, until, warm_up
from redis_wire import Proxy
from store_parts import TTL, Follower, MessageRecorder, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"


async def test_flushall_starts_a_new_epoch(server: RedisServer) -> None:
    async with open_worker(server.url) as one, open_worker(server.url) as two:
        changes = [asyncio.Event(), asyncio.Event()]
        before, clients = one.epoch, Clients(two)
        for store, changed in zip((one, two), changes, strict=True):
            store.watch(changed.set)
        old = await append(one, STREAM, b"old")
        await clients.join("chat", "ann")
        server.ask("FLUSHALL")
        new = await append(one, STREAM, b"new")
        async with asyncio.timeout(WAIT):
            for changed in changes:
                await changed.wait()
        assert one.epoch == two.epoch == new[0].epoch != before
        assert new[0].offset > old[0].offset + 1
        with pytest.raises(Gap):
            await two.log.read(STREAM, old[0])
        await clients.presence.refresh()
        assert await Clients(one).on("chat") == ["ann"]


async def test_redis_that_lost_its_data_is_used_again(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        before = store.epoch
        old = await append(store, STREAM, b"old")
        server.stop()
        server.start()
        new = await append(store, STREAM, b"new")
        assert store.epoch == new[0].epoch != before
        with pytest.raises(Gap):
            await store.log.read(STREAM, old[0])
        assert data_of(await read_all(store, STREAM)) == [b"new"]


async def test_redis_restart_starts_a_new_epoch() -> None:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    try:
        async with open_worker(server.url) as store:
            epoch = store.epoch
            positions = await append(store, STREAM, *(b"%d" % n for n in range(20)))
            server.stop()
            server.start()
            (last,) = await append(store, STREAM, b"20")
            with pytest.raises(Gap):
                await store.log.read(STREAM, positions[-1])
            assert data_of(await read_all(store, STREAM)) == [b"%d" % n for n in range(21)]
            assert last.offset > positions[-1].offset
            assert last.epoch == store.epoch > epoch
    finally:
        server.close()


async def test_events_lost_by_a_redis_restart_are_reported_as_a_gap() -> None:
    server = RedisServer()
    try:
        async with open_worker(server.url) as one, open_worker(server.url) as two:
            follower = Follower(two, STREAM)
            await append(one, STREAM, b"kept")
            server.ask("SAVE")
            await append(one, STREAM, b"lost")
            await follower.until(b"lost")
            server.stop()
            server.start()
            await append(one, STREAM, b"after")
            await until(lambda: follower.gaps)
            await append(one, STREAM, b"live")
            await follower.until(b"live")
            await follower.close()
    finally:
        server.close()


@pytest.mark.impatient
async def test_stalled_redis_is_reported_as_an_error_until_it_recovers(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
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


async def test_append_with_a_lost_reply_is_applied_once(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.redis.store.RENEW", 600.0)
    async with Proxy(server.port) as wire, open_worker(f"redis://127.0.0.1:{wire.port}", 600.0) as store:
        await warm_up(store)
        before = await append(store, STREAM, b"before")
        await until(lambda: store.backend._client._write_task is None)
        wire.drop_replies = True
        names = [STREAM, "call:session:1"] * 20
        tasks = [asyncio.create_task(append(store, name, b"%d" % n)) for n, name in enumerate(names)]
        sent = asyncio.create_task(store.bus.send(store.workers.me, "inbox", b"once"))
        inbox = MessageRecorder()
        store.bus.subscribe("inbox", inbox)
        await until(lambda: server.ask("XLEN", "millstream:{j0}:l:hub:journal") == 20 + 2)
        wire.drop_replies = False
        wire.cut()
        positions = await asyncio.gather(*tasks)
        assert await sent
        assert await store.bus.send(store.workers.me, "inbox", b"end")
        assert await inbox.until(b"end") == [b"once", b"end"]
        journal = await read_all(store, STREAM)
        assert sorted(data_of(journal)) == sorted([b"warm", b"before", *(b"%d" % n for n in range(0, 40, 2))])
        assert len(await read_all(store, "call:session:1")) == 20
        own = {entry.data: entry.position for entry in journal}
        assert [positions[n][0] for n in range(0, 40, 2)] == [own[b"%d" % n] for n in range(0, 40, 2)]
        assert journal[-1].position.offset == before[0].offset + 20


async def test_a_connection_closed_while_idle_is_replaced_before_a_write(server: RedisServer) -> None:
    async with open_worker(server.url, lease=600.0) as store:
        await store.kv.put("session:1", b"before", TTL)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)  # closed after the store's
        writer.write(b"PING\r\n")
        await reader.readline()
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        await reader.read()
        await asyncio.sleep(0)
        await store.kv.put("session:1", b"after", TTL)  # a write that isn't repeated
        assert await store.kv.get("session:1") == b"after"
        writer.close()


async def test_a_silent_connection_is_replaced(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.redis.store.RENEW", 600.0)
    monkeypatch.setattr("millstream._stores.redis.client.EXCHANGE_SECONDS", 1.0)
    async with Proxy(server.port) as wire, open_worker(f"redis://127.0.0.1:{wire.port}", 600.0) as store:
        await warm_up(store)
        await until(lambda: store.backend._client._write_task is None)
        wire.drop_replies = True
        task = asyncio.create_task(append(store, STREAM, b"once"))
        await until(lambda: wire.dropped_bytes)
        wire.drop_replies = False
        await task
        assert data_of(await read_all(store, STREAM)) == [b"warm", b"once"]


async def test_broken_redis_connections_are_reopened(server: RedisServer) -> None:
    async with Proxy(server.port) as wire, open_worker(f"redis://127.0.0.1:{wire.port}") as store:
        follower = Follower(store, STREAM)
        for n, fault in enumerate([wire.cut, wire.half_close] * 3):
            fault()
            await append(store, STREAM, b"%d" % n)
        await append(store, STREAM, b"end")
        await follower.until(b"end")
        assert data_of(follower.taken) == [*(b"%d" % n for n in range(6)), b"end"]
        assert follower.gaps == []
        await follower.close()


async def test_random_channels_cannot_fill_redis(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        store.backend.log._room = 200_000
        for n in range(300):
            await store.log.append(
                STREAM, bytes(1000), ttl=TTL, max_entries=10, index=Index(f"hub:channel:{n}", TTL, 10)
            )
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=10, index=Index("mailbox:ann", TTL, 10))
        held = [n for n in range(300) if await store.log.newest(f"hub:channel:{n}", 1)]
        assert held == list(range(300 - len(held), 300))
        assert 20 < len(held) < 200
        assert await store.log.newest("mailbox:ann", 1)


async def test_every_redis_key_expires(server: RedisServer) -> None:
    async with open_worker(server.url) as store:
        await warm_up(store)
        await store.kv.put("session:a", b"", TTL)
        await store.kv.put("seen:a", b"", TTL, lossy=True)
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=10, index=Index("mailbox:ann", TTL, 10))
        await store.bus.send(store.workers.me, "t", b"")
        store.log.listen("call:a:b", MessageRecorder())
        await store.log.wait_until_listening("call:a:b")
        keys = server.ask("KEYS", "*")
        assert len(keys) > 10
        assert {key: server.ask("PTTL", key.decode()) for key in keys if server.ask("PTTL", key.decode()) < 0} == {}


async def test_servers_with_different_prefixes_share_redis(server: RedisServer) -> None:
    async with open_worker(f"{server.url}?prefix=a:") as one, open_worker(f"{server.url}?prefix=b:") as two:
        await one.kv.put("key", b"one", TTL)
        await append(one, STREAM, b"one")
        assert await two.kv.get("key") is None
        assert await two.kv.keys("key") == []
        assert await two.log.newest(STREAM, 1) == []
        assert one.epoch != two.epoch
        assert await one.kv.keys("key") == ["key"]


async def test_redis_pause_does_not_expire_leases(server: RedisServer) -> None:
    async with open_worker(server.url, 600.0) as one, open_worker(server.url, 600.0) as two:
        await Clients(one).join("chat", "ann")
        names = [one.workers.me, two.workers.me]

        def end_all(table: WorkerTable) -> bool:
            table.leases = dict.fromkeys(table.leases, one.time() - 1.0)
            table.last_renewal = one.time() - 601.0
            return True

        await update_worker_table(one.kv, end_all)
        clients = Clients(two)
        await clients.presence.refresh()
        assert await clients.on("chat") == ["ann"]
        async with open_worker(server.url, 600.0) as newcomer:
            assert await Clients(newcomer).on("chat") == ["ann"]
            for store in (one, two):
                assert isinstance(store.workers, LeasedWorker)
                await store.workers.renew()
            assert [one.workers.me, two.workers.me] == names


async def test_worker_with_a_lost_lease_gets_a_new_name(server: RedisServer) -> None:
    async with open_worker(server.url) as store, open_worker(server.url) as other:
        clients = Clients(store)
        await clients.join("chat", "ann")
        changed, interrupted = asyncio.Event(), asyncio.Event()
        store.workers.watch(changed.set)
        store.bus.subscribe("topic", MessageRecorder(), interrupted=interrupted.set)
        old = store.workers.me
        await update_worker_table(other.kv, lambda table: table.end(old, other.time()))
        async with asyncio.timeout(WAIT):
            while store.workers.me == old:
                await changed.wait()
                changed.clear()
            await interrupted.wait()
        assert not await other.bus.send(old, "topic", b"void")
        await clients.presence.refresh()
        assert await Clients(other).on("chat") == ["ann"]
