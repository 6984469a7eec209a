"""FLUSHALL, and a worker that hears of it late: it has nothing to ask, and its next heartbeat is far away."""

import pytest

from millstream._stores.redis.keys import Keys
from patience import WAIT
from redis_parts import RedisServer, opened
from store_parts import Follower, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"
KEYS = Keys("millstream:")
HOUR = 3_600_000_000


async def test_an_idle_worker_is_told_what_was_flushed_and_hears_what_came_since(server: RedisServer) -> None:
    """The contract of `EventLog`: what is gone is never skipped in silence, and no offset stands for two entries."""
    async with opened(server.url, lease=10 * WAIT) as idle:
        follower = Follower(idle, STREAM)
        (old,) = await append(idle, STREAM, b"old")
        await follower.until(b"old")
        server.ask("FLUSHALL")
        async with opened(server.url, lease=10 * WAIT) as other:
            (new,) = await append(other, STREAM, b"new")
            await follower.until(b"new")
            assert follower.told
            assert follower.taken[-1].position == new
            assert new.epoch > old.epoch
            assert new.offset > old.offset
            assert idle.epoch == new.epoch
        await follower.close()


async def test_what_was_flushed_is_not_brought_back_by_a_worker_that_has_not_heard_of_it(server: RedisServer) -> None:
    """Whoever deletes the data wants them gone. A restart right afterwards is no failover that lost them."""
    async with opened(server.url, lease=10 * WAIT) as idle:
        follower = Follower(idle, STREAM)
        await append(idle, STREAM, b"old")
        await follower.until(b"old")
        server.ask("FLUSHALL")
        idle._reader.hold()  # the first thing that it hears is that Redis has another run
        async with opened(server.url, lease=10 * WAIT) as other:
            await append(other, STREAM, b"new")
            server.ask("SAVE")
            server.stop()
            server.start()
            idle.workers.hurry()
            await append(other, STREAM, b"newer")
            await follower.until(b"newer")
            assert follower.told
            assert data_of(await read_all(idle, STREAM)) == data_of(await read_all(other, STREAM)) == [b"new", b"newer"]
        await follower.close()


@pytest.mark.parametrize("first", ["the idle worker", "a newcomer"])
async def test_a_worker_hears_what_comes_after_flushall_also_where_the_clock_was_set_back(
    server: RedisServer, first: str
) -> None:
    """Fixed defect: the stream began anew in front of the place that the worker had read, so it heard nothing until the
    clock was there.
    """
    async with opened(server.url, lease=10 * WAIT) as idle:
        follower = Follower(idle, STREAM)
        (old,) = await append(idle, STREAM, b"old")
        server.ask("HSET", KEYS.meta(STREAM), "last", str(old.offset + HOUR))
        await append(idle, STREAM, b"far")
        await follower.until(b"far")
        server.ask("FLUSHALL")
        if first == "the idle worker":
            await idle.workers.beat()
        async with opened(server.url, lease=10 * WAIT) as newcomer:
            await append(newcomer, STREAM, b"near")
            if first == "a newcomer":
                await idle.workers.beat()
            await append(newcomer, STREAM, b"nearer")
            await follower.until(b"nearer")
            assert follower.told
        await follower.close()
