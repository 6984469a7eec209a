"""The store in Redis beyond the contract: what it costs, what it says when something is wrong, what faults do to it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from millstream.protocol.errors import LocalError
from millstream.stores import open_store
from millstream.stores.base import Gap, Index, StoreFull, StoreUnavailable, Told
from millstream.stores.redis.address import parse_address
from millstream.stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import LEASE, Proxy, RedisServer, until
from store_parts import TTL, Heard, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own."""
    server = RedisServer()
    yield server
    server.close()


@asynccontextmanager
async def opened(url: str, lease: float = LEASE) -> AsyncIterator[RedisStore]:
    store = RedisStore(parse_address(url), lease=lease)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


# what it costs


class Counted:
    """How many commands clients sent, as Redis counts them: without those that scripts call."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        text = self._server.ask("INFO", "commandstats").decode()
        found: dict[str, int] = {}
        for line in text.splitlines():
            if line.startswith("cmdstat_"):
                name, _, rest = line.removeprefix("cmdstat_").partition(":")
                found[name] = int(rest.partition("calls=")[2].partition(",")[0])
        return found

    def since(self) -> dict[str, int]:
        """Since this was made; those of the test itself are left out."""
        return {
            name: calls - self._before.get(name, 0)
            for name, calls in self._now().items()
            if calls != self._before.get(name, 0) and name not in ("info", "config|resetstat")
        }


async def quiet(store: RedisStore) -> None:
    """All scripts are known, and nothing is under way."""
    await until(lambda: store._reader._link is not None and not store.workers._hurry.is_set())
    await store.workers.beat()
    await append(store, STREAM, b"warm")
    await append(store, "call:warm:1", b"warm")
    await store.members.join("warm", "warm", b"", Told("hub:other", b"", TTL, 10))
    await store.bus.publish("warm", b"")


def asked(counted: Counted) -> dict[str, int]:
    """What this worker asked: the scripts, and what is asked plainly."""
    return {
        name: calls for name, calls in counted.since().items() if name in ("evalsha", "eval", "get", "scan", "keys")
    }


async def test_a_publish_a_logged_message_and_a_join_are_one_command_each(server: RedisServer) -> None:
    """Our budget: the store is asked once, and nobody who doesn't listen is told."""
    async with opened(server.url, lease=600.0) as store:
        await quiet(store)
        index, told = Index("hub:channel:x", TTL, 10), Told(STREAM, b"+", TTL, 100)
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: store.log.append(STREAM, b"event", ttl=TTL, max_entries=100, index=index),
            lambda: store.log.append("call:session:1", b"message", ttl=TTL, max_entries=100),
            lambda: store.members.join("chat", "ann", b"Ann", told),
            lambda: store.bus.publish("topic", b"message"),
        ]
        for step in steps:
            counted = Counted(server)
            await step()
            assert asked(counted) == {"evalsha": 1}
        counted = Counted(server)
        await store.kv.get("session:none")
        assert asked(counted) == {"get": 1}


async def test_a_worker_has_two_connections_and_never_scans(server: RedisServer) -> None:
    """Our budget: a managed Redis counts connections, and SCAN walks over everybody's keys."""
    async with opened(server.url) as store:
        heard = Heard()
        store.log.listen(STREAM, heard)
        await store.log.listening(STREAM)
        counted = Counted(server)
        await asyncio.gather(*(append(store, STREAM, b"%d" % n) for n in range(200)))
        await asyncio.gather(*(store.kv.put(f"session:{n}", b"", TTL) for n in range(200)))
        await store.members.abandoned()
        clients = [line for line in server.ask("CLIENT", "LIST").decode().splitlines() if "name=millstream" in line]
        assert sorted(line.partition("name=")[2].partition(" ")[0] for line in clients) == [
            "millstream-commands",
            "millstream-reader",
        ]
        assert not {"scan", "keys"} & counted.since().keys()


async def test_an_idle_worker_asks_twice_in_a_beat(server: RedisServer) -> None:
    """Our budget: at most one command a second, for a lease of six seconds is renewed every 2.4."""
    async with opened(server.url) as store:
        await quiet(store)
        await store.workers.beat()
        counted = Counted(server)
        beats = 3
        store.workers.lease = 600.0  # those of the test count, and no others
        for _ in range(beats):
            await store.workers.beat()
        since = counted.since()
        assert since["evalsha"] <= beats + 1
        assert since.get("xread", 0) <= beats + 1


async def test_whoever_follows_a_call_elsewhere_hears_it_and_costs_one_command_more(server: RedisServer) -> None:
    """A call's log is followed only where a client came back to another worker."""
    async with opened(server.url, 600.0) as one, opened(server.url, 600.0) as two:
        heard = Heard()
        stop = two.log.listen("call:session:1", heard)
        await two.log.listening("call:session:1")
        (first,) = await append(one, "call:session:1", b"first")
        await until(lambda: heard.items)
        assert [(entry.position, entry.data) for entry in heard.items] == [(first, b"first")]
        stop()
        await until(lambda: not server.ask("EXISTS", "millstream:{session}:f:call:session:1"))
        counted = Counted(server)
        await append(one, "call:session:1", b"second")
        assert asked(counted) == {"evalsha": 1}


# what it says


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:hunter2@", "names no host"),
        ("redis://:hunter2@host:port", "can't be read"),
        ("redis://:hunter2@host/one", "number of the database"),
        ("redis://:hunter2@host/0?colour=hunter2", "Unknown option"),
        ("redis://:hunter2@host/0?prefix={hunter2}", "prefix"),
        ("redis+sentinel://:hunter2@host:26379", "name of the service"),
        ("redis+cluster://:hunter2@host:7000/3", "only database 0"),
        ("rediss://:hunter2@host?ca=/nowhere/hunter2", "certificates"),
        ("http://:hunter2@host", "Unknown store"),
    ],
)
def test_a_url_that_cannot_be_used_says_why_and_never_the_password(url: str, said: str) -> None:
    """The message goes to a terminal and into logs."""
    with pytest.raises(LocalError, match=said) as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value)


async def test_a_store_that_is_not_there_says_so_at_once() -> None:
    """A wrong port in a deployment shows when the server starts."""
    with pytest.raises(LocalError, match="can't be reached"):
        async with opened("redis://127.0.0.1:1"):
            pass


async def test_a_wrong_password_is_named_and_not_shown(server: RedisServer) -> None:
    """The message goes to a terminal and into logs."""
    server.ask("CONFIG", "SET", "requirepass", "right")
    for url in (f"redis://:hunter2@127.0.0.1:{server.port}", server.url):
        with pytest.raises(LocalError, match="user or password") as refused:
            async with opened(url):
                pass
        assert "hunter2" not in str(refused.value)
    async with opened(f"redis://:right@127.0.0.1:{server.port}/0") as store:
        await store.kv.put("key", b"", TTL)


async def test_a_redis_that_evicts_is_refused(server: RedisServer) -> None:
    """It would lose sessions and events in silence."""
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(LocalError, match="noeviction"):
        async with opened(server.url):
            pass


async def test_a_replica_is_refused(server: RedisServer) -> None:
    """It takes no writes."""
    server.ask("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(LocalError, match="read-only replica"):
        async with opened(server.url):
            pass


async def test_a_redis_that_is_too_old_is_refused() -> None:
    """6.2 has no automatic sequence of ids, and the scripts rely on it."""

    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b"# Server\r\nredis_version:6.2.14\r\nrun_id:x\r\n"
        while await reader.read(65536):
            writer.write(b"+OK\r\n:1\r\n$%d\r\n%b\r\n" % (len(info), info))
        writer.close()

    listener = await asyncio.start_server(old, "127.0.0.1", 0)
    async with listener:
        with pytest.raises(LocalError, match=r"6\.2\.14.*needs Redis 7\.0"):
            async with opened(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"):
                pass


async def test_a_full_redis_refuses_and_takes_again_when_it_has_room(server: RedisServer) -> None:
    """The contract of `StoreFull`: named, at once, and nothing is changed."""
    async with opened(server.url) as store:
        (first,) = await append(store, STREAM, b"before")
        await store.kv.put("session:one", b"old", TTL)
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreFull, match="maxmemory"):
            await append(store, STREAM, b"refused")
        with pytest.raises(StoreFull):
            await store.kv.put("session:one", b"new", TTL)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert await store.kv.get("session:one") == b"old"
        (second,) = await append(store, STREAM, b"after")
        assert second.offset == first.offset + 1


ACL = (
    "~millstream:* -@all +auth +select +client|setname +client|id +client|unblock +info +evalsha +eval +xread +get"
    " +hget +hset +unlink +srem +zscore +zrangebyscore +pexpire +scan +time +hmget +hsetnx +hdel +hgetall +hincrby "
    " +smembers +sadd +spop +exists +set +xadd +xtrim +xlen +xrange +xrevrange +zadd +zrem +zcard +zrange +zrevrange"
    " +zremrangebyscore"
)
"""As in docs/how-to/use-redis.md."""


async def test_a_user_that_may_do_only_what_is_documented_can_do_everything(server: RedisServer) -> None:
    """docs/how-to/use-redis.md names the commands."""
    server.ask("ACL", "SETUSER", "millstream", "on", ">secret", *ACL.split())
    async with opened(f"redis://millstream:secret@127.0.0.1:{server.port}") as store:
        await quiet(store)
        heard = Heard()
        store.log.listen("hub:late", heard)
        await store.log.listening("hub:late")
        entry = (await append(store, "hub:late", b"x"))[0]
        await heard.until((await store.log.newest("hub:late", 1))[0])
        assert await store.log.read("hub:late", entry) == []
        await store.log.touch("hub:late", TTL)
        await store.log.append(STREAM, b"", ttl=TTL, max_entries=5, index=Index("hub:channel:x", TTL, 5), seal=True)
        store.log.listen("call:a:b", heard)()
        for lossy in (False, True):
            await store.kv.put("seen:x", b"1", TTL, lossy=lossy)
        assert await store.kv.compare_and_set("seen:x", b"1", None, TTL)
        assert await store.kv.keys("seen:") == []
        assert await store.bus.send(store.workers.me, "t", b"")
        await store.members.leave("warm", "warm", Told("hub:other", b"", TTL, 10))
        assert await store.members.present("warm") == await store.members.abandoned() == []
        assert not await store.workers.alive("0" * 12)
        await store.workers.beat()
        await store.members.keep()
        await store.log.trim("hub:late")
    refused = server.ask("ACL", "LOG")
    assert refused == []


# faults


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


async def test_a_redis_with_an_append_only_file_loses_nothing() -> None:
    """Restarted with its file: the epoch stays."""
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
        tasks.append(asyncio.create_task(store.members.join("chat", "ann", b"", Told(STREAM, b"+", TTL, 99))))  # type: ignore[arg-type]
        sent = asyncio.create_task(store.bus.send(store.workers.me, "inbox", b"once"))
        inbox = Heard()
        store.bus.subscribe("inbox", inbox)
        await until(lambda: server.ask("XLEN", "millstream:{j0}:l:hub:journal") == 21 + 2)
        wire.deaf = False
        wire.cut()
        positions = await asyncio.gather(*tasks)
        assert await sent
        assert await store.bus.send(store.workers.me, "inbox", b"end")
        assert await inbox.until(b"end") == [b"once", b"end"]
        journal = await read_all(store, STREAM)
        assert sorted(data_of(journal)) == sorted([b"warm", b"before", b"+", *(b"%d" % n for n in range(0, 40, 2))])
        assert len(await read_all(store, "call:session:1")) == 20
        own = {entry.data: entry.position for entry in journal}
        assert positions[-1] == own[b"+"]
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
    """A connection can look healthy and bring nothing any more: each beat sends a probe through it."""
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
    async with opened(server.url) as store:
        told = Told("hub:visits", b"+ann", TTL, 10)
        await store.members.join("chat", "ann", b"Ann", told)
        changed, interrupted = asyncio.Event(), asyncio.Event()
        store.workers.watch(changed.set)
        store.bus.subscribe("topic", Heard(), interrupted=interrupted.set)
        old = store.workers.me
        server.ask("ZADD", "millstream:{j0}:w", "1", old)
        async with asyncio.timeout(WAIT):
            await changed.wait()
            await interrupted.wait()
        assert store.workers.me != old
        assert not await store.bus.send(old, "topic", b"void")
        assert await store.members.abandoned() == []
        assert await store.members.present("chat") == [("ann", b"Ann")]


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
