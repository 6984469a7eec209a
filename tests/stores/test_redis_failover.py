"""What happens to a stream when Redis begins anew from files that lack its newest entries. When they're written is up
to its clock, so the tests say it: `SAVE`, and then the process is killed.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from millstream._server.calls.written import Written
from millstream._stores.base import Entry, Gap, Index, Position, Store, Told
from millstream._stores.redis.address import parse_address
from millstream._stores.redis.store import RedisStore
from millstream.hub import Hub, HubLimits
from patience import WAIT
from redis_parts import LEASE, RedisServer, kill, until
from store_parts import TTL, Heard, append, data_of, read_all

pytestmark = pytest.mark.server
STREAM = "hub:journal"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is slow to come isn't one that doesn't come."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", WAIT / 2)
    monkeypatch.setattr("millstream._stores.redis.commands.PATIENCE", WAIT)


@pytest.fixture
def server() -> RedisServer:
    """A Redis of the test's own: it'll be killed."""
    return RedisServer()


@pytest.fixture
async def workers(server: RedisServer) -> AsyncIterator[list[RedisStore]]:
    """Two workers that follow the stream."""
    stores = [RedisStore(parse_address(server.url), lease=LEASE) for _ in range(2)]
    for store in stores:
        await store.open()
        await follow(store)
    yield stores
    for store in stores:
        await store.close()
    server.close()


async def follow(store: Store) -> Heard:
    heard = Heard()
    store.log.listen(STREAM, heard)
    await store.log.listening(STREAM)
    return heard


def begin_anew(server: RedisServer) -> None:
    """Kill the server, and start it with the files that it has written."""
    server.stop()
    server.start()


async def heard_by_all(workers: list[RedisStore], position: Position) -> None:
    """Return when each worker has read up to here."""
    await until(lambda: all(store._standing.floor(STREAM) >= position.offset for store in workers))


async def test_entries_that_a_new_run_of_redis_lacks_are_brought_back_at_their_offsets(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """Our promise: while a worker that saw an event lives, no acknowledged event is lost."""
    one, two = workers
    epoch = one.epoch
    positions = await append(one, STREAM, *(b"%d" % n for n in range(10)))
    server.ask("SAVE")
    positions += await append(one, STREAM, *(b"%d" % n for n in range(10, 20)))
    positions += await append(two, STREAM, *(b"%d" % n for n in range(20, 30)))
    begin_anew(server)
    positions += await append(two, STREAM, b"after")
    entries = await read_all(one, STREAM)
    assert data_of(entries) == [*(b"%d" % n for n in range(30)), b"after"]
    assert [entry.position for entry in entries] == positions
    assert positions[-1].offset - positions[0].offset == 30
    assert one.epoch == two.epoch == epoch, "nothing is missing, so nobody is told of a loss"
    heard = await follow(one)
    (last,) = await append(two, STREAM, b"last")
    await heard.until(Entry(last, b"last"))


async def test_an_index_is_brought_back_with_its_stream(server: RedisServer, workers: list[RedisStore]) -> None:
    """What was published is in the journal and in the history of its channel, or in neither."""
    one, two = workers
    index = Index("hub:channel:news", TTL, 100)
    await one.log.append(STREAM, b"before", ttl=TTL, max_entries=100, index=index)
    server.ask("SAVE")
    lost = await one.log.append(STREAM, b"lost", ttl=TTL, max_entries=100, index=index)
    await heard_by_all(workers, lost)
    begin_anew(server)
    history = await two.log.newest(index.stream, 10)
    assert data_of(history) == [b"before", b"lost"]
    assert history[1].position == lost


async def test_what_a_dead_worker_appended_is_brought_back_by_one_that_saw_it(
    server: RedisServer, workers: list[RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our promise. The dead one may have known more than the others, so the data also get a new epoch."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 1.0)
    one, two = workers
    epoch = two.epoch
    await append(one, STREAM, b"before")
    server.ask("SAVE")
    lost = (await append(one, STREAM, b"lost"))[0]
    await heard_by_all(workers, lost)
    server.stop()
    await kill(one)
    server.start()
    await append(two, STREAM, b"after")
    assert data_of(await read_all(two, STREAM)) == [b"before", b"lost", b"after"]
    assert two.epoch != epoch
    with pytest.raises(Gap):
        await two.log.read(STREAM, lost)


async def test_where_nobody_remembers_every_reader_is_told(
    server: RedisServer, workers: list[RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract of `Position`: an offset that was given out means nothing else later."""
    monkeypatch.setattr("millstream._stores.redis.repair.PATIENCE", 1.0)
    one, two = workers
    await append(one, STREAM, b"before")
    server.ask("SAVE")
    lost = (await append(one, STREAM, b"lost"))[0]
    epoch = one.epoch
    server.stop()
    await kill(one)
    await kill(two)
    server.start()
    new = RedisStore(parse_address(server.url), lease=LEASE)
    await new.open()
    try:
        assert new.epoch != epoch
        positions = await append(new, STREAM, b"new", b"newer")
        assert all(position.epoch == new.epoch for position in positions)
        with pytest.raises(Gap):
            await new.log.read(STREAM, lost)
        assert data_of(await read_all(new, STREAM)) == [b"before", b"new", b"newer"]
    finally:
        await new.close()


async def test_members_and_messages_work_as_before_after_redis_began_anew(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """The contract of `Members` and `Bus`: nobody seems to leave or to come, and messages arrive."""
    one, two = workers
    server.ask("SAVE")
    _, position = await one.members.join("chat", "ann", b"Ann", Told(STREAM, b"+ann", TTL, 100))
    assert position is not None
    inbox, topic, interrupted = Heard(), Heard(), asyncio.Event()
    two.bus.subscribe("inbox", inbox, interrupted=interrupted.set)
    two.bus.subscribe("topic", topic)
    assert await one.bus.send(two.workers.me, "inbox", b"before")
    await inbox.until(b"before")
    names = [each.workers.me for each in workers]
    begin_anew(server)
    await append(one, STREAM, b"after")
    async with asyncio.timeout(WAIT):
        await interrupted.wait()
    assert [each.workers.me for each in workers] == names
    assert await one.bus.send(two.workers.me, "inbox", b"after")
    await inbox.until(b"after")
    await one.bus.publish("topic", b"published")
    await topic.until(b"published")
    await until(lambda: two.members.present("chat"))
    assert await two.members.present("chat") == [("ann", b"Ann")]
    assert data_of(await read_all(two, STREAM)) == [b"+ann", b"after"]


async def test_a_log_of_a_call_that_lost_its_tail_goes_on_with_a_hole(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """The contract of `Position`: what is not dense is a loss, and no offset is used twice."""
    one, two = workers
    name = "call:session:1"
    kept = await append(one, name, b"kept")
    server.ask("SAVE")
    lost = await append(one, name, b"lost")
    begin_anew(server)
    new = await append(one, name, b"new")
    assert new[0].offset > lost[0].offset + 1
    with pytest.raises(Gap):
        await two.log.read(name, Position("another", kept[0].offset))
    assert [entry.position for entry in await two.log.read(name, kept[0])] == new


async def test_publishers_who_wait_while_redis_begins_anew_neither_lose_nor_repeat(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """Our promise: an append whose connection broke is made once, and acknowledged when the store has it."""
    acknowledged: list[bytes] = []
    numbers = itertools.count()
    stop = False

    async def publish(store: RedisStore) -> None:
        while not stop:
            data = b"%d" % next(numbers)
            await store.log.append(STREAM, data, ttl=TTL, max_entries=100_000)
            acknowledged.append(data)

    tasks = [asyncio.create_task(publish(store)) for store in workers for _ in range(10)]
    for goal in (200, 400, 600):
        await until(lambda: len(acknowledged) >= goal)  # noqa: B023
        if goal < 600:
            server.ask("SAVE")
            begin_anew(server)
    stop = True
    await asyncio.gather(*tasks)
    found = data_of(await read_all(workers[0], STREAM))
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)


async def test_that_a_message_waits_for_a_client_is_noted_again_in_a_new_run_of_redis(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """A fixed defect: were the message to expire before the client comes, nobody would tell it of the loss."""
    one, two = workers
    server.ask("SAVE")
    hub = Hub(one, HubLimits())
    await hub.open()
    await hub.send("me", "waits")
    begin_anew(server)
    await until(lambda: two.kv.get("debt:me"))
    await hub.close()


async def test_a_value_that_a_new_run_of_redis_lacks_is_written_again_by_whoever_wrote_it(
    server: RedisServer, workers: list[RedisStore]
) -> None:
    """Whoever listens hears that another run has taken over, and what was written before counts as the same data."""
    one, _ = workers
    written = Written(one, lambda key, value: float(value or b"0"))
    interrupted = asyncio.Event()
    one.bus.subscribe("news", lambda _: None, interrupted=interrupted.set)
    await append(one, STREAM, b"a")
    await one.kv.put("session:a", b"1", TTL)
    server.ask("SAVE")
    await one.kv.put("session:a", b"2", TTL)
    written.note("session:a", b"2", TTL)
    begin_anew(server)
    await asyncio.wait_for(interrupted.wait(), WAIT)
    assert await one.kv.get("session:a") == b"1"
    assert await written.restore() == ["session:a"]
    assert await one.kv.get("session:a") == b"2"
    assert await written.restore() == []
