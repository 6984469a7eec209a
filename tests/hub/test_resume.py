import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backend_stores import MemoryStore
from cases import for_each
from hub_parts import Clock, DelayedStore, Outlet, encode_line, listen, open_hub, second_worker, turns
from millstream._stores.base import ONCE_SECONDS, Gap
from millstream._stores.store import Store
from millstream.hub import Event, Hub
from millstream.hub._event import parse_position, position_id, unpack
from millstream.hub._journal import JOURNAL, history_stream
from store_parts import BACKINGS, backings

PAD = "x" * 1000


async def publish(hub: Hub, *data: str, channel: str = "broadcast") -> None:
    """Several events."""
    for each in data:
        await hub.publish(channel, each)


async def test_streams_can_be_resumed_before_their_first_event() -> None:
    async with open_hub() as hub:
        for expected in (["1"], ["2"]):
            outlet = await listen(hub)
            assert outlet.data == []
            outlet.close()
            await publish(hub, *expected)
            assert (await listen(hub, last_event_id=outlet.last_id)).data == expected


async def test_one_id_resumes_all_channels_and_patterns() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub, "a", "b.*")
        await publish(hub, "1", channel="a")
        await publish(hub, "2", channel="b.x")
        outlet.close()
        for number, channel in enumerate(["b.y", "c", "a", "b.x", "a"]):
            await publish(hub, str(number), channel=channel)
        again = await listen(hub, "a", "b.*", last_event_id=outlet.last_id)
        assert again.data == ["0", "2", "3", "4"]
        assert again.gaps == []


async def test_publisher_ids_can_be_used_to_resume() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub)
        await hub.publish("broadcast", "1", id="order 1")
        assert outlet.last_id == "order 1"
        await hub.publish("broadcast", "2", id="order 2")
        assert (await listen(hub, last_event_id="order 1")).data == ["2"]


async def test_publisher_ids_are_scoped_to_their_channel() -> None:
    async with open_hub() as hub:
        await hub.publish("a", "a1", id="1")
        await hub.publish("a", "a2", id="2")
        await hub.publish("b", "b1", id="1")
        assert (await listen(hub, "a", last_event_id="1")).data == ["a2"]


@pytest.fixture(params=backings(BACKINGS))
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """One worker on each store."""
    backing = BACKINGS[request.param]()
    yield await backing.worker()
    await backing.close()


async def test_id_of_several_events_begins_with_a_gap(store: Store) -> None:
    """The subscriber may have seen the first of them, so the last one isn't the place to resume."""
    async with open_hub(store, clock=time.time) as hub:
        for pattern, suffixes in (("few.*", "abc"), ("many.*", "abcdefghijklmnopqrstuvwxyz")):
            for each in suffixes:
                await hub.publish(pattern.replace("*", each), each, id=None if each == "b" else pattern)
            outlet = await listen(hub, pattern, last_event_id=pattern)
            assert (outlet.gaps, "".join(outlet.data)) == (["unknown"], suffixes)
            outlet = await listen(hub, pattern.replace("*", "a"), last_event_id=pattern)
            assert (outlet.gaps, outlet.data) == (([], []) if pattern == "few.*" else (["unknown"], ["a"]))


async def test_repeated_id_on_a_channel_begins_with_a_gap() -> None:
    clock = Clock()
    async with open_hub(clock=clock) as hub:
        for text in "123":
            clock.now += 2 * ONCE_SECONDS
            await hub.publish("broadcast", text, id=None if text == "2" else "x")
        outlet = await listen(hub, last_event_id="x")
        assert (outlet.gaps, outlet.data) == (["unknown"], ["1", "2", "3"])


async def test_id_of_several_events_is_known_from_history() -> None:
    """The first one is no longer in the journal."""
    clock = Clock()
    async with open_hub(clock=clock, journal=3) as hub:
        await hub.publish("broadcast", "1", id="x")
        await publish(hub, "2")
        await publish(hub, *"abcdef", channel="other")
        clock.now += 2 * ONCE_SECONDS
        await hub.publish("broadcast", "3", id="x")
        outlet = await listen(hub, last_event_id="x")
        assert (outlet.gaps, outlet.data) == (["unknown"], ["1", "2", "3"])


async def test_position_of_an_event_resumes_after_it_whatever_its_id() -> None:
    positions: list[str] = []

    def encode(event: Event) -> bytes:
        positions.append(event.position or event.id)
        return encode_line(event)

    async with open_hub() as hub:
        await hub.subscribe(["*"], Outlet(), encode=encode)
        positions.clear()
        for number, channel in enumerate("abc"):
            await hub.publish(channel, str(number), id=None if channel == "b" else "x")
        for number, position in enumerate(positions):
            outlet = await listen(hub, "*", last_event_id=position)
            assert (outlet.gaps, outlet.data) == ([], ["0", "1", "2"][number + 1 :])


async def test_publisher_ids_are_found_in_history() -> None:
    store = MemoryStore()
    async with open_hub(store, journal=3) as hub:
        await hub.publish("broadcast", "1", id="mine")
        await publish(hub, "2")
        await publish(hub, *"abcdef", channel="other")
    async with open_hub(store, journal=3) as hub:
        outlet = await listen(hub, last_event_id="mine")
        assert (outlet.gaps, outlet.data) == ([], ["2"])


async def test_publisher_ids_of_events_that_the_store_lost_are_forgotten() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        for number in range(3):
            await hub.publish("broadcast", str(number), id=f"order {number}")
        assert (await listen(hub, last_event_id="order 2")).data == []
        journal = store.log._streams[JOURNAL]
        journal.entries.pop()
        hub._delivery._on_gap(Gap(store.epoch, journal.entries[0].position, journal.entries[-1].position))
        reader = hub._delivery.reader
        found = [await reader.find(f"order {number}", lambda channel: True) for number in range(3)]
        assert [len(each) for each in found] == [1, 1, 0]


@for_each("channel", ["broadcast", "*"])
async def test_events_in_the_place_of_lost_ones_are_delivered_to_those_who_resume(channel: str) -> None:
    store = MemoryStore()
    async with open_hub(store) as other, open_hub(second_worker(store)) as hub:
        before = (await listen(other)).last_id
        await publish(other, "a", "b", "c")
        outlet = await listen(hub, channel, last_event_id=before)
        assert outlet.data == ["a", "b", "c"]
        for stream in (JOURNAL, history_stream("broadcast")):  # as after a crash that lost the newest writes
            held = store.log._streams[stream]
            del held.entries[-2:]
            held.last -= 2
        store.log.interrupt()
        await turns()
        await publish(other, "d", "e")
        assert (outlet.gaps, outlet.data) == (["lost"], ["a", "b", "c", "d", "e"])
        assert (await listen(hub, channel, last_event_id=before)).data == ["a", "d", "e"]


@for_each("count", [10, 3000])
async def test_publisher_ids_are_found_in_the_whole_journal(count: int) -> None:
    async with open_hub() as hub:
        await hub.publish("broadcast", "first", id="x")
        await publish(hub, *map(str, range(count)))
        again = await listen(hub, last_event_id="x")
        assert again.data == list(map(str, range(count)))
        assert again.gaps == []


@for_each("last", ["nonsense", "other.5", "here.999999", "here.", ".", "here." + "9" * 40, "é"])
async def test_unknown_ids_cause_a_gap_followed_by_the_rest(last: str) -> None:
    async with open_hub(MemoryStore(epoch="here")) as hub:
        await publish(hub, "1", "2")
        await publish(hub, "no", channel="other")
        outlet = await listen(hub, last_event_id=last)
        assert outlet.gaps == ["unknown"]
        assert outlet.data == ["1", "2"]
        await publish(hub, "3")
        assert outlet.data == ["1", "2", "3"]


async def test_restart_that_loses_the_store_is_reported_as_a_gap() -> None:
    async with open_hub() as hub:
        last = (await listen(hub)).last_id
    async with open_hub() as hub:
        await publish(hub, "new")
        for channels in (["broadcast"], [">"]):
            outlet = await listen(hub, *channels, last_event_id=last)
            assert (outlet.gaps, outlet.data) == (["unknown"], ["new"])


async def test_restart_that_keeps_the_store_is_not_reported_as_a_gap() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        await publish(hub, "1")
        last = (await listen(hub)).last_id
        await publish(hub, "2")
    async with open_hub(store) as hub:
        await publish(hub, "3")
        outlet = await listen(hub, last_event_id=last)
        assert (outlet.gaps, outlet.data) == ([], ["2", "3"])


async def test_history_is_bounded_by_count() -> None:
    async with open_hub(journal=5, history=3) as hub:
        await publish(hub, *map(str, range(10)))
        assert [event.data for event in await hub.history("broadcast")] == [b"7", b"8", b"9"]
        assert (await listen(hub, history=50)).data == ["7", "8", "9"]
        assert (await listen(hub, last_event_id="nonsense")).data == ["7", "8", "9"]


async def test_history_is_bounded_by_age() -> None:
    clock = Clock()
    async with open_hub(clock=clock, history_age=60.0) as hub:
        last = (await listen(hub)).last_id
        await publish(hub, "old")
        clock.now += 40
        await publish(hub, "middle")
        clock.now += 40
        await publish(hub, "new")
        outlet = await listen(hub, last_event_id=last)
        assert (outlet.gaps, outlet.data) == (["expired"], ["middle", "new"])
        assert (await listen(hub, history=10)).data == ["middle", "new"]
        assert [event.data for event in await hub.history("broadcast")] == [b"middle", b"new"]


async def test_new_subscriber_receives_recent_history_first() -> None:
    async with open_hub() as hub:
        await publish(hub, "1", "2", "3")
        await publish(hub, "x", channel="b")
        outlet = await listen(hub, history=2)
        assert outlet.data == ["2", "3"]
        assert (await listen(hub, ">", history=2)).data == ["3", "x"]
        assert (await listen(hub, history=2, last_event_id=outlet.last_id)).data == []


async def test_busy_channels_do_not_evict_quiet_history() -> None:
    async with open_hub(MemoryStore(), journal=10) as hub:
        await publish(hub, "q1", channel="quiet")
        last = (await listen(hub, "quiet")).last_id
        await publish(hub, "q2", channel="quiet")
        await flood(hub)
        await publish(hub, "q3", channel="quiet")
        outlet = await listen(hub, "quiet", last_event_id=last)
        assert (outlet.gaps, outlet.data) == ([], ["q2", "q3"])
        assert (await listen(hub, "quiet.*", last_event_id=last)).gaps == ["trimmed"]


async def test_events_missing_from_journal_and_history_are_reported_as_a_gap() -> None:
    async with open_hub(MemoryStore(), journal=10, history=2) as hub:
        last = (await listen(hub, "quiet")).last_id
        await publish(hub, "q1", "q2", "q3", channel="quiet")
        await flood(hub)
        outlet = await listen(hub, "quiet", last_event_id=last)
        assert (outlet.gaps, outlet.data) == (["trimmed"], ["q2", "q3"])


async def flood(hub: Hub) -> None:
    """More than a worker remembers."""
    await publish(hub, *["x" * 1000] * 4200, channel="busy")


async def test_quiet_subscribers_receive_their_position() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub, "quiet")
        await publish(hub, "x", channel="busy")
        before = outlet.last_id
        await hub.refresh()
        assert outlet.data == []
        assert outlet.last_id != before
        assert (await listen(hub, "quiet", last_event_id=outlet.last_id)).gaps == []


async def test_worker_that_fell_behind_sends_a_gap_and_continues() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub, open_hub(store, journal=3) as other:
        hub._delivery.event_tail.stop()  # the bus loses every message
        outlet = await listen(hub)
        await publish(other, "1")
        await hub.refresh()
        await publish(other, *map(str, range(2, 9)))
        await hub.refresh()
        assert outlet.data == ["1", "6", "7", "8"]
        assert outlet.gaps == ["lost"]
        assert hub.stats().gaps == 1


async def test_slow_catch_up_receives_new_events_in_order() -> None:
    async with open_hub() as hub:
        last = (await listen(hub)).last_id
        await publish(hub, *(f"{number} {PAD}" for number in range(450)))
        outlet = Outlet()
        task = asyncio.create_task(hub.subscribe(["broadcast"], outlet, encode=encode_line, last_event_id=last))
        await turns(1)
        assert 0 < len(outlet.data) < 450
        for number in range(450, 600):
            await publish(hub, f"{number} {PAD}")
            await asyncio.sleep(0)
        await task
        await publish(hub, f"600 {PAD}")
        assert outlet.data == [f"{number} {PAD}" for number in range(601)]


async def test_subscribers_that_leave_during_catch_up_are_removed() -> None:
    async with open_hub() as hub:
        last = (await listen(hub)).last_id
        await publish(hub, *[PAD] * 450)
        outlet = Outlet()
        task = asyncio.create_task(hub.subscribe(["broadcast"], outlet, encode=encode_line, last_event_id=last))
        await turns(1)
        outlet.close()
        await task
        assert 0 < len(outlet.data) < 450
        assert hub.stats().subscribers == 1


@for_each("seed", range(8))
async def test_events_have_the_same_order_on_every_worker(seed: int) -> None:
    dice = random.Random(seed)
    memory = MemoryStore()
    stores = [DelayedStore(lambda: dice.randrange(4), memory) for _ in range(2)]
    async with open_hub(stores[0]) as one, open_hub(stores[1]) as two:
        hubs = [one, two]
        reference = await listen(one, ">")
        done = asyncio.Event()
        heard: dict[int, list[str]] = {}

        async def read(reader: int, *channels: str) -> None:
            heard[reader] = []
            last = reference_start
            while True:
                finished = done.is_set()
                outlet = Outlet()
                await dice.choice(hubs).subscribe(channels, outlet, encode=encode_line, last_event_id=last)
                await turns(dice.randrange(30))
                outlet.close()
                assert outlet.gaps == []
                heard[reader] += outlet.data
                last = outlet.last_id
                if finished:
                    return

        async def write(writer: int) -> None:
            for number in range(30):
                await dice.choice(hubs).publish(dice.choice("ab"), f"{writer}.{number}")

        reference_start = reference.last_id
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(read(0, ">")), group.create_task(read(1, "a", "b"))]
            readers += [group.create_task(read(2, "a"))]
            async with asyncio.TaskGroup() as writers:
                for writer in range(3):
                    writers.create_task(write(writer))
            done.set()
        await one.refresh()
        assert len(reference.data) == 90
        assert heard[0] == heard[1] == reference.data
        assert heard[2] == [each for each in reference.data if each in set(heard[2])]


async def test_resumes_are_counted_by_outcome() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub)
        assert hub.stats().replays == {"full": 0, "gap": 0}
        await listen(hub, last_event_id=outlet.last_id)
        assert hub.stats().replays == {"full": 1, "gap": 0}
        await listen(hub, last_event_id="nobody published this")
        assert hub.stats().replays == {"full": 1, "gap": 1}
        await hub.receive("ann", Outlet(), encode=encode_line)
        assert hub.stats().replays == {"full": 2, "gap": 1}


@pytest.mark.parametrize(
    ("channels", "options", "most"),
    [
        ((">",), {"last_event_id": "nobody published this"}, 2_001),  # the ones that it sends, which aren't cached
        (("nothing.*",), {"last_event_id": "nobody published this"}, 0),
        (("broadcast",), {"last_event_id": "nobody published this"}, 202),
        ((">",), {"history": 50}, 0),
        (("nothing.*",), {"history": 50}, 0),
        (("nothing.*",), {"last_event_id": "here.3"}, 0),
        (("broadcast",), {"history": 1}, 2),
    ],
)
async def test_small_requests_do_not_decode_the_whole_journal(
    monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...], options: dict[str, Any], most: int
) -> None:
    decoded = 0

    def counted(*args: Any) -> Event:
        nonlocal decoded
        decoded += 1
        return unpack(*args)

    async with open_hub(MemoryStore(epoch="here"), journal=4000, history=100) as hub:
        await publish(hub, *map(str, range(4000)))
        monkeypatch.setattr("millstream.hub._journal.unpack", counted)
        await listen(hub, *channels, **options)
        assert decoded <= most


async def test_long_replays_yield_to_other_subscribers() -> None:
    async with open_hub() as hub:
        last = (await listen(hub, ">")).last_id
        await publish(hub, *map(str, range(5000)))
        turned = 0

        async def other() -> None:
            nonlocal turned
            while True:
                await asyncio.sleep(0)
                turned += 1

        task = asyncio.create_task(other())
        outlet = Outlet()
        outlet.drain = turns_none  # type: ignore[method-assign]  # an outlet that always has room gives none itself
        await hub.subscribe([">"], outlet, encode=encode_line, last_event_id=last)
        task.cancel()
        assert len(outlet.data) == 5000
        assert turned >= 5


async def turns_none() -> None:
    """Nothing to wait for."""


@for_each("offset", [2**63 - 1, 2**63 - 2, 10**18])
async def test_largest_offset_can_be_resumed(offset: int) -> None:
    assert parse_position(position_id("here", offset), "here") == (offset, None)
    assert parse_position(f"here.{offset}-{offset}", "here") == (offset, offset)
    for beyond in (2**63, 10**19, 10**40):
        assert parse_position(f"here.{beyond}", "here") is None
        assert parse_position(f"here.{offset}-{beyond}", "here") is None


@for_each("id", ["here.", "here.-1", "here.1-", "here.1-2-3", "here.1-x", "here.x-1", "here.²", "1", "-"])
def test_malformed_positions_are_rejected(id: str) -> None:
    assert parse_position(id, "here") is None
