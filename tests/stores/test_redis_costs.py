"""What the store in Redis costs: commands and connections, as Redis itself counts them."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from millstream._stores.base import Index, Told
from millstream._stores.redis.commands import LOOK
from millstream._stores.redis.store import RedisStore
from millstream._stores.redis.workers import BEAT, LEASE
from millstream.hub import Hub, HubLimits
from millstream.hub._hub import _READS as READS
from redis_monitor import Monitor
from redis_parts import RedisServer, opened, quiet, until
from store_parts import TTL, Heard, append

pytestmark = pytest.mark.server
STREAM = "hub:journal"


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


def asked(counted: Counted) -> dict[str, int]:
    """What this worker asked: the scripts, and what is asked plainly."""
    return {
        name: calls for name, calls in counted.since().items() if name in ("evalsha", "eval", "get", "scan", "keys")
    }


async def beaten(store: RedisStore) -> None:
    """One beat, and its probe has come back."""
    await store.workers.beat()
    await until(lambda: store.workers._unanswered == 0)


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


async def test_an_idle_worker_with_a_hub_asks_less_than_once_a_second(server: RedisServer) -> None:
    """Our budget, for everything that a worker does by itself in two minutes. MONITOR shows what clients send, the
    reader's connection included. Fixed defect: the hub read its streams too often.
    """
    minutes = 2
    async with opened(server.url, lease=600.0) as store:  # beats come from here only, not from the clock
        hub = Hub(store, HubLimits())
        await hub.open()
        await hub.refresh()
        await until(lambda: not store.workers._hurry.is_set())
        await beaten(store)
        with closing(Monitor(server)) as sent:
            for _ in range(round(minutes * 60 / (LEASE * BEAT))):
                await beaten(store)
            for turn in range(1, round(minutes * 60 / HubLimits().refresh) + 1):
                await hub.refresh(read=turn % READS == 0)
            for _ in range(round(minutes * 60 / LOOK)):
                store._commands.look()
            await store.kv.get("session:last")
            commands = sent.until("session:last")
        await hub.close()
    assert len([each for each in commands if "XREAD" in each]) <= minutes * 25 + 1
    assert len([each for each in commands if "INFO" in each]) == minutes * 60 / LOOK
    assert len(commands) - 1 <= minutes * 60


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
