"""Servers that are replaced while they're well, as operators do before maintenance. The old one doesn't know it for
some seconds, and when it's the primary again before that, it has what it had then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from millstream._stores.base import Told
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.link import Link, Lost
from millstream._stores.redis.routes import COMMANDS, Place
from millstream._stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import RedisServer, Sentinels, ask, opened, until
from redis_wire import Proxy
from store_parts import TTL, Follower, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"
KEYS = Keys("millstream:")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is slow to come isn't one that doesn't come."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)


class Pair:
    """Two servers with a first entry, each of which takes itself for the primary, and two workers at the old one."""

    def __init__(self, old: RedisServer, new: RedisServer, wires: list[Proxy], workers: list[RedisStore]) -> None:
        self.old = old
        self.new = new
        self.wires = wires
        self.workers = workers

    async def lead_to(self, server: RedisServer) -> None:
        """From now on that's the one."""
        await asyncio.gather(*(self.lead(number, server) for number in range(len(self.wires))))

    async def lead(self, number: int, server: RedisServer) -> None:
        """That's the one for this worker."""
        self.wires[number].to = server.port
        self.wires[number].cut()
        await self.workers[number].workers.beat()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        old, new = RedisServer("--repl-diskless-sync-delay", "0"), RedisServer()
        stack.callback(old.close)
        stack.callback(new.close)
        wires = [await stack.enter_async_context(Proxy(old.port)) for _ in range(2)]
        urls = [f"redis://127.0.0.1:{wire.port}" for wire in wires]
        workers = [await stack.enter_async_context(opened(url, lease=WAIT)) for url in urls]
        await append(workers[0], STREAM, b"first")
        new.ask("REPLICAOF", "127.0.0.1", str(old.port))
        await until(lambda: new.ask("XLEN", KEYS.stream(STREAM)) == 1)
        new.ask("REPLICAOF", "NO", "ONE")
        yield Pair(old, new, wires, workers)


async def test_a_server_that_comes_back_with_what_it_had_gets_what_was_added_meanwhile(pair: Pair) -> None:
    """No acknowledged event is lost while a worker lives that saw it."""
    one, two = pair.workers
    follower = Follower(two, STREAM)
    await pair.lead_to(pair.new)
    await append(one, STREAM, b"second")
    await pair.lead_to(pair.old)
    await append(two, STREAM, b"third")
    await pair.lead_to(pair.new)
    await append(one, STREAM, b"fourth")
    await follower.until(b"fourth")
    assert data_of(await read_all(one, STREAM)) == [b"first", b"second", b"third", b"fourth"]
    assert follower.taken == list(await read_all(one, STREAM))
    assert not follower.told
    await follower.close()


async def test_what_a_newcomer_added_to_a_server_that_was_given_up_displaces_nothing_in_silence(pair: Pair) -> None:
    """Our promise: what a client was shown isn't replaced by something else at the same place, unless it's told."""
    one, two = pair.workers
    follower = Follower(two, STREAM)
    await pair.lead_to(pair.new)
    (second,) = await append(one, STREAM, b"second")
    await follower.until(b"second")
    async with opened(pair.old.url, lease=WAIT) as stranger:
        (stray,) = await append(stranger, STREAM, b"stray")
        assert stray == second
    await pair.lead_to(pair.old)
    assert one.epoch != second.epoch
    await append(one, STREAM, b"third")
    await follower.until(b"third")
    assert follower.told
    assert data_of(await read_all(two, STREAM)) == [b"first", b"stray", b"second", b"third"]
    await follower.close()


async def test_an_epoch_that_was_given_up_is_over_for_good(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may know offsets of the old epoch that were given to other entries since."""
    one, two = pair.workers
    old = one.epoch
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 0.0)
    pair.wires[1].freeze()
    pair.wires[0].to = pair.new.port
    pair.wires[0].cut()
    (second,) = await append(one, STREAM, b"second")
    assert second.epoch > old
    pair.wires[1].thaw()
    await pair.lead_to(pair.new)
    assert two.epoch == second.epoch
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    await pair.lead_to(pair.old)
    assert one.epoch == two.epoch > second.epoch
    assert data_of(await read_all(two, STREAM)) == [b"first", b"second"]


@pytest.mark.parametrize("first_visit", ["settled", "new"])
async def test_what_a_worker_said_in_a_repair_that_it_left_counts_no_more(pair: Pair, first_visit: str) -> None:
    """Fixed defect: a worker had said that a server has everything, and left before the others had come. It went on
    elsewhere. When the others came to the first server, its word still counted, and what only it had seen was lost in
    silence.
    """
    one, two = pair.workers
    there, back = (pair.old, pair.new) if first_visit == "settled" else (pair.new, pair.old)
    follower = Follower(two, STREAM)
    await follower.until(b"first")
    if first_visit == "settled":
        await pair.lead_to(back)
    leaving = asyncio.create_task(pair.lead(0, there))
    await until(lambda: there.ask("HGET", KEYS.repair, f"w{one.workers.me}"))
    await pair.lead_to(back)
    await leaving
    pair.wires[1].freeze_old()  # it won't hear what comes
    await append(one, STREAM, b"second")
    coming = asyncio.create_task(pair.lead(1, there))
    await until(lambda: coming.done() or there.ask("HGET", KEYS.repair, f"w{two.workers.me}"))
    await pair.lead(0, there)
    await coming
    pair.wires[1].thaw()
    await append(two, STREAM, b"third")
    await follower.until(b"third")
    assert data_of(await read_all(one, STREAM)) == [b"first", b"second", b"third"]
    assert follower.taken == list(await read_all(one, STREAM))
    assert not follower.told
    await follower.close()


async def test_data_settled_later_without_what_another_epoch_added_get_it_and_everybody_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed defect: what a worker published on its own side of a network that was split was lost where the other side
    had settled later, and only that worker's clients learned of it.
    """
    one, two = pair.workers
    old = one.epoch
    follower = Follower(two, STREAM)
    await follower.until(b"first")
    leaving = asyncio.create_task(pair.lead(0, pair.new))
    await until(lambda: pair.new.ask("HGET", KEYS.repair, f"w{one.workers.me}") == b"done")
    pair.wires[1].freeze()
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 0.0)
    await pair.lead(0, pair.old)
    await leaving
    (second,) = await append(one, STREAM, b"second")
    assert second.epoch > old
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    pair.wires[1].thaw()
    await pair.lead(1, pair.new)
    assert two.epoch == old
    await pair.lead_to(pair.new)
    assert one.epoch == two.epoch > second.epoch
    await follower.until(b"second")
    assert follower.told
    assert data_of(await read_all(two, STREAM)) == [b"first", b"second"]
    await follower.close()


async def test_an_event_whose_acknowledgement_was_lost_is_there_once_on_the_server_that_comes_back(pair: Pair) -> None:
    """Fixed defect: it was published to a server that was replaced before it could say so, and again to the next one,
    where it came to lie further behind. When the first one was back, it had the event twice.
    """
    one, two = pair.workers
    for wire in pair.wires:
        wire.freeze_old()
    losing = asyncio.create_task(append(one, STREAM, b"lost"))
    await until(lambda: pair.old.ask("XLEN", KEYS.stream(STREAM)) == 2)
    pair.wires[0].to = pair.new.port
    pair.wires[0].cut()
    await until(lambda: pair.new.ask("HGET", KEYS.repair, f"w{one.workers.me}"))
    pair.wires[0].freeze()  # it learns later than the others that the repair is over
    await pair.lead(1, pair.new)
    await append(two, STREAM, b"second")
    await two.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 1000))
    pair.wires[0].thaw()
    await losing
    assert data_of(await read_all(two, STREAM)) == [b"first", b"second", b"+ann", b"lost"]
    await pair.lead_to(pair.old)
    await append(two, STREAM, b"third")
    assert data_of(await read_all(one, STREAM)) == [b"first", b"lost", b"second", b"third"]


@pytest.mark.parametrize("then", ["nothing", "another event"])
async def test_what_a_newcomer_added_that_the_others_never_heard_of_is_brought(pair: Pair, then: str) -> None:
    """Fixed defect: a server that comes back waits for the workers that it knows. One that had begun elsewhere
    meanwhile came when all was settled, and what only it had was lost in silence.
    """
    one, two = pair.workers
    follower = Follower(two, STREAM)
    await pair.lead_to(pair.new)
    pair.wires[0].freeze_old()
    pair.wires[1].freeze_old()
    async with Proxy(pair.new.port) as wire, opened(f"redis://127.0.0.1:{wire.port}", lease=WAIT) as newcomer:
        await append(newcomer, STREAM, b"second")
        await pair.lead_to(pair.old)
        expected = [b"first", b"second"]
        if then == "another event":
            await append(one, STREAM, b"other")
            expected.insert(1, b"other")
        wire.to = pair.old.port
        wire.cut()
        await newcomer.workers.beat()
        await append(newcomer, STREAM, b"third")
        await follower.until(b"third")
        assert data_of(await read_all(one, STREAM)) == [*expected, b"third"]
        assert bool(follower.told) == (then == "another event")  # only where something else was shown at its offset
    for each in pair.wires:
        each.thaw()
    await follower.close()


async def test_a_worker_that_has_nothing_to_ask_goes_to_the_new_server_at_once() -> None:
    """Fixed defect: it went with its next heartbeat, 2.4 s later. The others waited for it, often for longer than they
    wait, and then told everybody that events may be lost.
    """
    old, new = RedisServer(), RedisServer()
    try:
        async with Proxy(old.port) as wire, opened(f"redis://127.0.0.1:{wire.port}", lease=10 * WAIT) as idle:
            moved = [True]

            async def told() -> bool:
                return bool(moved) and moved.pop()

            wire.to = new.port
            idle._routes.moved = told  # type: ignore[method-assign]
            run = _run_of(new)
            await until(lambda: idle._standing.settled.startswith(run))
    finally:
        old.close()
        new.close()


async def test_a_worker_that_was_too_early_at_the_new_server_is_there_soon_again() -> None:
    """Fixed defect: it came with its next heartbeat, and missed the moment in which the others waited for it."""
    old, new = RedisServer(), RedisServer()
    try:
        async with Proxy(old.port) as wire, opened(f"redis://127.0.0.1:{wire.port}", lease=10 * WAIT) as idle:
            failures: list[str] = []
            connect = idle._routes.connect

            async def too_early(place: Place, name: str, broken: Callable[[Link], None]) -> Link:
                if name == COMMANDS and len(failures) < 2:  # the other connection, which reads, is made
                    failures.append(name)
                    raise Lost("It isn't there yet.")
                return await connect(place, name, broken)

            idle._routes.connect = too_early  # type: ignore[method-assign]
            assert idle._hub is not None
            wire.to = new.port
            idle._hub.close()
            run = _run_of(new)
            await until(lambda: idle._standing.settled.startswith(run))
            assert len(failures) == 2
    finally:
        old.close()
        new.close()


async def test_failovers_that_somebody_asks_sentinel_for_lose_no_event() -> None:
    """No acknowledged event is lost while a worker lives that saw it."""
    sentinels = Sentinels()
    added: list[bytes] = []
    try:
        async with opened(sentinels.url) as one, opened(sentinels.url) as two:
            follower = Follower(two, STREAM)

            async def publish() -> None:
                while True:
                    data = b"%d" % len(added)
                    await one.log.append(STREAM, data, ttl=TTL, max_entries=100_000)
                    added.append(data)
                    # Workers remember 10,000, and on a machine that stands still a failover takes a minute.
                    await asyncio.sleep(0.001 if len(added) < before + 1_000 else 0.1)

            before = 0
            await until(lambda: sentinels.replica.ask("DBSIZE"))  # the first second of a replica may pass without data
            publishing = asyncio.create_task(publish())
            for following in (sentinels.replica, sentinels.primary, sentinels.replica, sentinels.primary):
                await until(partial(_leads, following, sentinels.port, (one, two)))
                before = len(added)
                await until(lambda: len(added) > before + 100)  # noqa: B023
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await follower.until(added[-1])
            assert data_of(await read_all(one, STREAM))[: len(added)] == added
            assert data_of(follower.taken)[: len(added)] == added
            assert not follower.told
            await follower.close()
    finally:
        sentinels.close()


def _leads(server: RedisServer, sentinel: int, workers: Iterable[RedisStore]) -> bool:
    """Whether all are at this server. Sentinel is asked for that again: it gives a failover up after a standstill."""
    if ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1] != b"%d" % server.port:
        ask(sentinel, "SENTINEL", "FAILOVER", "main")
        return False
    run = _run_of(server)
    return all(each._standing.settled.startswith(run) for each in workers)


def _run_of(server: RedisServer) -> str:
    info = server.ask("INFO", "server").decode()
    return info.partition("run_id:")[2][:12]
