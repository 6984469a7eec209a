"""What `millstream._stores.base` promises of members and of the worker itself, asked of every store. What needs several
workers is in `test_workers_contract.py`.
"""

import asyncio
import re
import time

from millstream._stores.base import Store, Told
from store_parts import TTL, Heard, append, data_of, read_all


def told(data: bytes) -> Told:
    return Told("hub:journal", data, TTL, 1000)


async def test_the_first_arrival_and_the_last_departure_are_told_and_nothing_else(store: Store) -> None:
    """The contract of `Members`: the entry is appended with the change, and its position is given back."""
    value, come = await store.members.join("chat", "ann", b"Ann", told(b"+ann"))
    assert value == b"Ann"
    assert await store.members.join("chat", "ann", b"again", told(b"+ann")) == (b"Ann", None)
    _, other = await store.members.join("chat", "bob", b"", told(b"+bob"))
    assert (await store.members.join("den", "ann", b"Ann", told(b"+ann in the den")))[1] is not None
    assert sorted(await store.members.present("chat")) == [("ann", b"Ann"), ("bob", b"")]
    gone = await store.members.leave("chat", "ann", told(b"-ann"))
    assert await store.members.leave("chat", "ann", told(b"-ann")) is None
    assert await store.members.leave("nowhere", "ann", told(b"-ann")) is None
    assert await store.members.present("chat") == [("bob", b"")]
    assert await store.members.present("den") == [("ann", b"Ann")]
    assert await store.members.present("nowhere") == []
    entries = await read_all(store, "hub:journal")
    assert data_of(entries) == [b"+ann", b"+bob", b"+ann in the den", b"-ann"]
    assert [entries[0].position, entries[1].position, entries[3].position] == [come, other, gone]


async def test_a_member_that_left_arrives_again_with_a_new_value(store: Store) -> None:
    """The contract of `Members.join`: nobody vouched any more."""
    for value in (b"one", b"two"):
        assert (await store.members.join("chat", "ann", value, told(b"+")))[1] is not None
        assert await store.members.present("chat") == [("ann", value)]
        assert await store.members.leave("chat", "ann", told(b"-")) is not None
    assert data_of(await read_all(store, "hub:journal")) == [b"+", b"-", b"+", b"-"]


async def test_of_many_that_vouch_at_once_one_tells_it(store: Store) -> None:
    """The contract of `Members`: each change is atomic for its group."""
    joins = await asyncio.gather(*(store.members.join("chat", "ann", b"%d" % n, told(b"+")) for n in range(20)))
    assert len([at for _, at in joins if at is not None]) == 1
    assert {value for value, _ in joins} == {value for _, value in await store.members.present("chat")}
    leaves = await asyncio.gather(*(store.members.leave("chat", "ann", told(b"-")) for _ in range(20)))
    assert len([each for each in leaves if each is not None]) == 1
    assert data_of(await read_all(store, "hub:journal")) == [b"+", b"-"]


async def test_what_members_tell_is_heard_like_every_append(store: Store) -> None:
    """The contract of `Told`: an entry as any other."""
    heard = Heard()
    store.log.listen("hub:journal", heard)
    await store.log.listening("hub:journal")
    await store.members.join("chat", "ann", b"", told(b"+"))
    await store.members.leave("chat", "ann", told(b"-"))
    last = (await read_all(store, "hub:journal"))[-1]
    assert data_of(await heard.until(last)) == [b"+", b"-"]


async def test_nobody_is_abandoned_while_the_worker_lives(store: Store) -> None:
    """The contract of `Members.abandoned`."""
    await store.members.join("chat", "ann", b"", told(b"+"))
    assert await store.members.abandoned() == []
    assert await store.members.present("chat") == [("ann", b"")]


async def test_a_worker_has_a_name_and_lives(store: Store) -> None:
    """The contract of `Workers.me`."""
    assert re.fullmatch("[0-9a-f]{12}", store.workers.me)
    assert await store.workers.alive(store.workers.me)
    assert not await store.workers.alive("0" * 12)
    assert store.workers.lease >= 0.0


async def test_a_worker_can_send_to_itself_in_order(store: Store) -> None:
    """The contract of `Bus.send`: the inbox of a worker is open to all."""
    inbox, other = Heard(), Heard()
    store.bus.subscribe("inbox", inbox)
    store.bus.subscribe("else", other)
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        assert await store.bus.send(store.workers.me, "inbox", data)
    assert await inbox.until(sent[-1]) == sent
    assert not await store.bus.send("0" * 12, "inbox", b"nobody")
    assert await store.bus.send(store.workers.me, "else", b"end")
    await other.until(b"end")
    assert inbox.items == sent


async def test_the_clock_of_the_store_is_that_of_the_world(store: Store) -> None:
    """The contract of `Store.time`: on one machine both clocks are the same."""
    before = time.time()
    assert before - 60.0 <= store.time() <= time.time() + 60.0


async def test_append_and_members_share_one_order(store: Store) -> None:
    """The contract of `Told`: dense offsets, whoever appends."""
    _, first = await store.members.join("chat", "ann", b"", told(b"+"))
    (second,) = await append(store, "hub:journal", b"said")
    third = await store.members.leave("chat", "ann", told(b"-"))
    assert first is not None
    assert third is not None
    assert [second.offset, third.offset] == [first.offset + 1, first.offset + 2]
