"""What `millstream._stores.base` promises where several workers share a store, and what is left of one that died."""

import asyncio
from contextlib import suppress

import pytest

from millstream._stores.base import Entry, Sealed, Store, Told
from millstream._stores.follow import Tail
from patience import WAIT
from store_parts import TTL, Backing, Heard, append, data_of, read_all, until_workers

STREAM = "hub:journal"


def told(data: bytes) -> Told:
    return Told(STREAM, data, TTL, 1000)


async def until_gone(store: Store, worker: str) -> None:
    """Return once a worker has no lease any more."""

    async def gone() -> bool:
        return not await store.workers.alive(worker)

    await until_workers(store, gone)


# values and streams


async def test_what_one_worker_wrote_every_other_sees(backing: Backing) -> None:
    """The contract of `KeyValue` and `EventLog`: a read that starts after a write has returned sees it."""
    one, two = await backing.worker(), await backing.worker()
    assert one.shared
    assert two.shared
    assert one.epoch == two.epoch
    for n in range(20):
        await one.kv.put("key", b"%d" % n, TTL)
        assert await two.kv.get("key") == b"%d" % n
        positions = await append(one, STREAM, b"%d" % n)
        assert (await two.log.newest(STREAM, 1)) == [Entry(positions[0], b"%d" % n)]
    assert await two.kv.delete("key")
    assert await one.kv.get_many(["key"]) == [None]


async def test_of_several_workers_that_compare_with_the_same_value_one_wins(backing: Backing) -> None:
    """The contract of `KeyValue.compare_and_set`."""
    workers = [await backing.worker() for _ in range(3)]
    for n in range(20):
        tries = [each.kv.compare_and_set(f"lease:{n}", None, b"x", TTL) for each in workers for _ in range(3)]
        assert sum(await asyncio.gather(*tries)) == 1


async def test_counting_up_by_comparing_loses_no_step(backing: Backing) -> None:
    """The contract of `KeyValue.compare_and_set`: one order of the operations on a key."""
    workers = [await backing.worker() for _ in range(3)]

    async def count(store: Store) -> None:
        done = 0
        while done < 30:
            now = await store.kv.get("count")
            done += await store.kv.compare_and_set("count", now, b"%d" % (int(now or b"0") + 1), TTL)

    async with asyncio.timeout(WAIT):
        await asyncio.gather(*(count(each) for each in workers))
    assert await workers[0].kv.get("count") == b"90"


async def test_appends_of_all_workers_have_one_dense_order(backing: Backing) -> None:
    """The contract of `Position`."""
    workers = [await backing.worker() for _ in range(3)]
    sent = await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    entries = await read_all(workers[0], STREAM)
    assert [each.position for each in entries] == sorted(
        (each for some in sent for each in some), key=lambda p: p.offset
    )
    assert entries[-1].position.offset - entries[0].position.offset == 149
    assert await read_all(workers[2], STREAM) == entries


async def test_a_seal_holds_for_every_worker(backing: Backing) -> None:
    """The contract of `EventLog.append`: who was stopped and wakes later can't write behind the end."""
    owner, other = await backing.worker(), await backing.worker()
    await append(owner, "call:1", b"begun")
    await other.log.append("call:1", b"closed by another", ttl=TTL, max_entries=10, seal=True)
    with pytest.raises(Sealed):
        await append(owner, "call:1", b"late")
    assert data_of(await read_all(owner, "call:1")) == [b"begun", b"closed by another"]


async def test_what_any_worker_appends_is_heard_by_all_who_listen(backing: Backing) -> None:
    """The contract of `EventLog.listening`: nothing that is appended after it is missed."""
    workers = [await backing.worker() for _ in range(3)]
    ears = [Heard() for _ in workers]
    for each, ear in zip(workers, ears, strict=True):
        each.log.listen(STREAM, ear)
        await each.log.listening(STREAM)
    await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    entries = await read_all(workers[0], STREAM)
    for ear in ears:
        for entry in entries:
            await ear.until(entry)
        assert set(data_of(ear.items)) == set(data_of(entries))


async def test_who_follows_a_stream_while_others_write_gets_each_entry_once_and_in_order(backing: Backing) -> None:
    """The contract of `EventLog`, as the hub uses it: listen, read, go on."""
    workers = [await backing.worker() for _ in range(3)]
    ends = [Heard() for _ in workers]
    taken: list[list[Entry]] = [[] for _ in workers]

    async def follow(n: int) -> None:
        def take(entries: object) -> None:
            taken[n] += entries  # type: ignore[arg-type]
            for entry in taken[n]:
                ends[n](entry.data)

        tail = Tail(workers[n].log, STREAM, None, take, lambda gap: pytest.fail(str(gap)))
        await tail.catch_up()
        try:
            await tail.run()
        finally:
            tail.stop()

    tasks = [asyncio.create_task(follow(n)) for n in range(3)]
    await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    await append(workers[0], STREAM, b"end")
    for end in ends:
        await end.until(b"end")
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    entries = await read_all(workers[1], STREAM)
    assert taken == [entries] * 3


# messages


async def test_what_one_worker_publishes_reaches_the_others_in_order(backing: Backing) -> None:
    """The contract of `Bus.publish`."""
    one, two = await backing.worker(), await backing.worker()
    inbox, own = Heard(), Heard()
    two.bus.subscribe("topic", inbox)
    one.bus.subscribe("topic", own)
    async with asyncio.timeout(WAIT):
        while b"there" not in inbox.items:  # who subscribes isn't told when it works
            await one.bus.publish("topic", b"there")
            await two.kv.get("key")
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        await one.bus.publish("topic", data)
    assert [each for each in await inbox.until(sent[-1]) if each != b"there"] == sent
    assert [each for each in await own.until(sent[-1]) if each != b"there"] == sent


async def test_what_several_workers_publish_is_heard_in_one_order_everywhere(backing: Backing) -> None:
    """The contract of `Bus.publish`: whoever hears its own message knows which of the others' came before."""
    workers = [await backing.worker() for _ in range(3)]
    heard = [Heard() for _ in workers]
    for worker, inbox in zip(workers, heard, strict=True):
        worker.bus.subscribe("topic", inbox)
    async with asyncio.timeout(WAIT):
        while not all(inbox.items for inbox in heard):
            await workers[0].bus.publish("topic", b"there")
            await asyncio.gather(*(worker.kv.get("key") for worker in workers))

    async def publish(number: int) -> None:
        for turn in range(50):
            await workers[number].bus.publish("topic", b"%d-%d" % (number, turn))

    await asyncio.gather(*(publish(number) for number in range(len(workers))))
    await workers[0].bus.publish("topic", b"last")
    orders = [[each for each in await inbox.until(b"last") if each != b"there"] for inbox in heard]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 3 * 50 + 1


async def test_what_is_sent_to_a_worker_reaches_that_worker_only(backing: Backing) -> None:
    """The contract of `Bus.send`: in the order of sending."""
    one, two, three = [await backing.worker() for _ in range(3)]
    inboxes = {each.workers.me: Heard() for each in (one, two, three)}
    for each in (one, two, three):
        each.bus.subscribe("inbox", inboxes[each.workers.me])
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        assert await one.bus.send(two.workers.me, "inbox", data)
    assert await inboxes[two.workers.me].until(sent[-1]) == sent
    for each in (one, three):
        assert await two.bus.send(each.workers.me, "inbox", b"end")
        assert await inboxes[each.workers.me].until(b"end") == [b"end"]


async def test_nothing_can_be_sent_to_a_worker_whose_lease_is_over(backing: Backing) -> None:
    """The contract of `Bus.send`: False, and nobody gets it."""
    one, two = await backing.worker(), await backing.worker()
    dead = two.workers.me
    two.bus.subscribe("inbox", Heard())
    assert await one.bus.send(dead, "inbox", b"alive")
    await backing.kill(two)
    await until_gone(one, dead)
    assert not await one.bus.send(dead, "inbox", b"late")
    another = await backing.worker()
    assert another.workers.me != dead
    assert not await one.bus.send(dead, "inbox", b"late")


# workers and members


async def test_workers_hear_who_comes_and_goes(backing: Backing) -> None:
    """The contract of `Workers.watch`: after a death within the lease, and at once after a close."""
    one = await backing.worker()
    changed = asyncio.Event()
    stop = one.workers.watch(changed.set)
    two, three = await backing.worker(), await backing.worker()
    async with asyncio.timeout(WAIT):
        await changed.wait()
    stop()
    stop()
    assert len({each.workers.me for each in (one, two, three)}) == 3
    assert await one.workers.alive(two.workers.me)
    assert await two.workers.alive(one.workers.me)
    dead, closed = two.workers.me, three.workers.me
    await backing.kill(two)
    await until_gone(one, dead)
    await three.close()
    await until_gone(one, closed)
    assert await one.workers.alive(one.workers.me)


async def test_the_first_worker_that_vouches_tells_the_arrival_and_the_last_one_the_departure(backing: Backing) -> None:
    """The contract of `Members`: of all workers exactly one."""
    one, two = await backing.worker(), await backing.worker()
    assert (await one.members.join("chat", "ann", b"first", told(b"+")))[1] is not None
    assert await two.members.join("chat", "ann", b"second", told(b"+")) == (b"first", None)
    assert await one.members.present("chat") == await two.members.present("chat") == [("ann", b"first")]
    assert await one.members.leave("chat", "ann", told(b"-")) is None
    assert await one.members.leave("chat", "ann", told(b"-")) is None, "it's the other's to end"
    assert await one.members.present("chat") == [("ann", b"first")]
    assert await two.members.leave("chat", "ann", told(b"-")) is not None
    assert await one.members.present("chat") == []
    assert data_of(await read_all(one, STREAM)) == [b"+", b"-"]


async def test_workers_that_vouch_at_once_tell_one_arrival_and_one_departure(backing: Backing) -> None:
    """The contract of `Members`: each change is atomic for its group."""
    workers = [await backing.worker() for _ in range(3)]
    for n in range(20):
        joins = await asyncio.gather(*(each.members.join("chat", f"{n}", b"", told(b"+")) for each in workers))
        leaves = await asyncio.gather(*(each.members.leave("chat", f"{n}", told(b"-")) for each in workers))
        assert sum(at is not None for _, at in joins) == 1
        assert sum(each is not None for each in leaves) == 1
    assert data_of(await read_all(workers[0], STREAM)) == [b"+", b"-"] * 20


async def test_members_of_a_dead_worker_are_handed_to_one_caller_once(backing: Backing) -> None:
    """The contract of `Members.abandoned`: who gets them tells that they left."""
    dead, one, two = [await backing.worker() for _ in range(3)]
    name = dead.workers.me
    for n in range(20):
        await dead.members.join("chat", f"{n}", b"%d" % n, told(b"+"))
    await dead.members.join("den", "ann", b"Ann", told(b"+"))
    await one.members.join("den", "ann", b"", told(b"+"))
    await backing.kill(dead)
    await until_gone(one, name)
    assert await two.members.present("chat") == []
    found = await asyncio.gather(*(each.members.abandoned() for each in (one, two) for _ in range(5)))
    expected = sorted(("chat", f"{n}", b"%d" % n) for n in range(20))
    assert sorted(each for some in found for each in some) == expected
    assert await one.members.abandoned() == []
    assert await two.members.present("den") == [("ann", b"Ann")], "somebody else vouches"
    assert await one.members.leave("den", "ann", told(b"-")) is not None
    assert (await two.members.join("chat", "3", b"new", told(b"+")))[1] is not None, "it was gone"
    assert await one.members.present("chat") == [("3", b"new")]


async def test_members_of_a_worker_that_closed_are_abandoned_too(backing: Backing) -> None:
    """The contract of `Workers`: its lease is renewed while it's open."""
    gone, one = await backing.worker(), await backing.worker()
    name = gone.workers.me
    await gone.members.join("chat", "ann", b"Ann", told(b"+"))
    await gone.close()
    await until_gone(one, name)
    assert await one.members.abandoned() == [("chat", "ann", b"Ann")]


async def test_who_comes_back_before_the_loss_was_told_never_left(backing: Backing) -> None:
    """The contract of `Members.join`: a client that reconnects to another worker after a crash isn't seen to leave."""
    dead, one = await backing.worker(), await backing.worker()
    name = dead.workers.me
    await dead.members.join("chat", "ann", b"before", told(b"+"))
    await backing.kill(dead)
    await until_gone(one, name)
    assert (await one.members.join("chat", "ann", b"after", told(b"+")))[1] is None
    assert await one.members.abandoned() == []
    assert [member for member, _ in await one.members.present("chat")] == ["ann"]
    assert await one.members.leave("chat", "ann", told(b"-")) is not None
    assert data_of(await read_all(one, STREAM)) == [b"+", b"-"]


async def test_the_last_living_worker_tells_the_departure_even_where_a_dead_one_vouched_too(backing: Backing) -> None:
    """The contract of `Members.leave`: a lease that is over vouches for nobody."""
    dead, one = await backing.worker(), await backing.worker()
    name = dead.workers.me
    await dead.members.join("chat", "ann", b"", told(b"+"))
    await one.members.join("chat", "ann", b"", told(b"+"))
    await backing.kill(dead)
    await until_gone(one, name)
    assert await one.members.leave("chat", "ann", told(b"-")) is not None
    assert await one.members.abandoned() == []
    assert data_of(await read_all(one, STREAM)) == [b"+", b"-"]
