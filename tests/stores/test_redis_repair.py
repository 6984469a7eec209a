"""What a worker shows while one run of Redis ends and the next one begins without the newest entries: what its readers
were given is what the next run gets, and nothing of the old one comes afterwards.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from millstream._stores.base import StoreUnavailable, Told
from millstream._stores.redis.keys import Keys
from millstream._stores.redis.recent import REMEMBERED, Recent
from millstream._stores.redis.store import RedisStore
from patience import WAIT
from redis_parts import RedisServer, opened, until
from redis_wire import Proxy
from store_parts import TTL, Follower, Heard, append, data_of, read_all

STREAM = "hub:journal"
PREFIX = "millstream:"


class World:
    """A Redis, and two workers on wires of their own, with leases that outlast the test."""

    def __init__(self, server: RedisServer, wires: list[Proxy], workers: list[RedisStore]) -> None:
        self.server = server
        self.wires = wires
        self.workers = workers

    async def append_unheard(self, data: bytes) -> None:
        """The first worker appends an entry and never learns of it. Then nobody asks for it any more."""
        one, wire = self.workers[0], self.wires[0]
        before = self._length()
        wire.deaf = True
        task = asyncio.create_task(one.log.append(STREAM, data, ttl=TTL, max_entries=100_000))
        await until(lambda: self._length() == before + 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    def _length(self) -> int:
        return int(self.server.ask("XLEN", Keys(PREFIX).stream(STREAM)))

    def begin_anew(self) -> None:
        """Kill Redis, and start it with what was saved."""
        self.server.stop()
        for wire in self.wires:
            wire.deaf = False
        self.server.start()


@asynccontextmanager
async def begun(data: bytes) -> AsyncIterator[World]:
    """The stream has a first entry, which is saved."""
    async with AsyncExitStack() as stack:
        server = RedisServer()
        stack.callback(server.close)
        wires = [await stack.enter_async_context(Proxy(server.port)) for _ in range(2)]
        urls = [f"redis://127.0.0.1:{wire.port}" for wire in wires]
        workers = [await stack.enter_async_context(opened(url, lease=WAIT)) for url in urls]
        await append(workers[0], STREAM, data)
        server.ask("SAVE")
        yield World(server, wires, workers)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is slow to come isn't one that doesn't come."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)


@pytest.mark.server
async def test_what_a_worker_has_only_read_is_brought_back() -> None:
    """Our promise: what a client was shown isn't replaced by something else at the same place."""
    async with begun(b"first") as world:
        one, two = world.workers
        await world.append_unheard(b"read")
        shown = await two.log.read(STREAM, None)
        assert data_of(shown) == [b"first", b"read"]
        world.begin_anew()
        await append(one, STREAM, b"after")
        entries = await read_all(one, STREAM)
        assert data_of(entries) == [b"first", b"read", b"after"]
        assert entries[:2] == list(shown)


@pytest.mark.server
async def test_that_somebody_came_is_brought_back_by_the_worker_that_said_it() -> None:
    """The contract of `Members`: the entry is appended together with the change."""
    async with begun(b"first") as world:
        one, two = world.workers
        _, position = await one.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 100_000))
        world.begin_anew()
        await append(two, STREAM, b"after")
        entries = await read_all(two, STREAM)
        assert data_of(entries) == [b"first", b"+ann", b"after"]
        assert entries[1].position == position


@pytest.mark.server
async def test_what_the_old_run_of_redis_sent_and_comes_late_is_not_shown() -> None:
    """Our promise: all followers get one order. What a worker hasn't heard when it says what it remembers is void."""
    async with begun(b"first") as world:
        one, two = world.workers
        follower = Follower(two, STREAM)
        await follower.until(b"first")
        await append(one, STREAM, b"second")
        await follower.until(b"second")
        world.wires[1].freeze_old()
        await world.append_unheard(b"void")
        world.begin_anew()
        two.workers.hurry()  # its reader can't notice anything
        await append(one, STREAM, b"third")
        world.wires[1].thaw()
        await append(one, STREAM, b"fourth")
        await follower.until(b"fourth")
        assert follower.taken == list(await read_all(one, STREAM))
        assert data_of(follower.taken) == [b"first", b"second", b"third", b"fourth"]
        assert not follower.told
        await follower.close()


@pytest.mark.server
async def test_a_run_of_redis_that_ends_during_the_repair_does_not_keep_the_next_one_from_being_repaired() -> None:
    """Our promise: publishers wait for as long as a reconnection when all workers are there."""
    async with begun(b"first") as world:
        one, two = world.workers
        await append(one, STREAM, b"second")
        assert data_of(await two.log.read(STREAM, None)) == [b"first", b"second"]
        world.wires[1].freeze()
        world.begin_anew()
        waiting = asyncio.create_task(append(one, STREAM, b"third"))
        repair = Keys(PREFIX).repair
        await until(lambda: world.server.ask("HGET", repair, f"w{one.workers.me}"))
        world.begin_anew()
        world.wires[1].thaw()
        async with asyncio.timeout(WAIT):
            await waiting
        assert data_of(await read_all(two, STREAM)) == [b"first", b"second", b"third"]


@pytest.mark.server
async def test_a_heartbeat_whose_connection_broke_does_not_take_the_new_run_of_redis_for_the_old_one() -> None:
    """Publishers wait for all workers, and a worker learns of the new run by its heartbeat."""
    async with begun(b"first") as world:
        one, _ = world.workers
        old = one._standing.run
        world.begin_anew()
        await one.workers.beat()
        assert one._standing.run != old
        assert world.server.ask("HGET", Keys(PREFIX).generation, "run") == one._standing.run.encode()


@pytest.mark.server
async def test_a_worker_whose_repair_failed_makes_up_for_it_at_its_next_heartbeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The contract of `Bus`: messages arrive, also where others went on without this worker."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 0.0)

    async def fail() -> None:
        raise StoreUnavailable

    async with begun(b"first") as world:
        one, two = world.workers
        heard = Heard()
        two.bus.subscribe("inbox", heard)
        with monkeypatch.context() as broken:
            broken.setattr(two._repair, "run", fail)
            world.begin_anew()
            with pytest.raises(StoreUnavailable):
                await two.workers.beat()
            await append(one, STREAM, b"second")
        await two.workers.beat()
        assert two.epoch == one.epoch
        assert await one.bus.send(two.workers.me, "inbox", b"message")
        await heard.until(b"message")


@pytest.mark.server
async def test_a_worker_that_comes_too_late_is_told_and_hears_what_now_has_the_offsets_that_it_had_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The contract of `EventLog`: what is gone is never skipped in silence, and neither is what took its place."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 0.0)
    async with begun(b"first") as world:
        one, two = world.workers
        follower = Follower(two, STREAM)
        old = await append(two, STREAM, b"old 1", b"old 2", b"old 3")
        await follower.until(b"old 3")
        world.wires[1].freeze()
        world.begin_anew()
        (new,) = await append(one, STREAM, b"new 1")
        assert new.offset == old[0].offset
        assert new.epoch != old[0].epoch
        world.wires[1].thaw()
        await follower.until(b"new 1")
        assert follower.told
        await append(one, STREAM, b"new 2")
        await follower.until(b"new 2")
        # What it remembers is of the new run: it could bring it to the next one.
        monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
        world.begin_anew()
        await append(two, STREAM, b"new 3")
        assert data_of(await read_all(two, STREAM)) == [b"first", b"new 1", b"new 2", b"new 3"]
        await follower.close()


def test_reading_old_entries_makes_nobody_forget_the_newest_ones() -> None:
    recent = Recent()
    for offset in (*range(REMEMBERED, 2 * REMEMBERED), *range(REMEMBERED)):
        recent.add(STREAM, offset, b"", b"%d" % offset)
    (page,) = recent.pages(STREAM, 0, REMEMBERED)
    assert [offset for offset, _, _ in page] == list(range(REMEMBERED, 2 * REMEMBERED))


def test_of_two_entries_at_one_offset_the_one_that_came_last_is_remembered() -> None:
    recent = Recent()
    recent.add(STREAM, 1, b"", b"old")
    recent.add(STREAM, 1, b"", b"new")
    assert list(recent.pages(STREAM, 0, 10)) == [[(1, b"", b"new")]]


def test_what_was_kept_of_a_stream_is_kept_on_where_reading_it_anew_fails() -> None:
    """Fixed defect: a worker that was led away while it read what a server had forgot what only it had seen."""
    recent = Recent()
    recent.add(STREAM, 1, b"", b"one")
    with suppress(StoreUnavailable), recent.replaced(STREAM):
        recent.add(STREAM, 2, b"", b"two")
        raise StoreUnavailable("It's away.")
    assert list(recent.pages(STREAM, 0, 10)) == [[(1, b"", b"one"), (2, b"", b"two")]]
    with recent.replaced(STREAM):
        recent.add(STREAM, 3, b"", b"three")
    assert list(recent.pages(STREAM, 0, 10)) == [[(3, b"", b"three")]]
