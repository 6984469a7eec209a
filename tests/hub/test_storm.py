import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from backend_stores import MemoryStore
from cases import for_each
from hub_parts import DelayedStore, Outlet, encode_line, listen, open_hub, turns
from millstream.hub import Hub
from millstream.hub._event import position_id
from millstream.hub._reader import SharedReads
from millstream.hub._replay import REPLAYS

pytestmark = pytest.mark.many


@pytest.fixture(autouse=True)
def long_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, a storm takes longer than pages are cached."""

    async def refresh(hub: Hub) -> None:
        """Keep the pages."""

    monkeypatch.setattr(Hub, "_refresh", refresh)


class CountedStore(DelayedStore):
    """Takes turns, and counts what is read."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(lambda: 1, store, immediate=True)
        self.reads = Counter[str]()
        for name in ("read", "newest"):
            setattr(self.log, name, self._counted(name))

    def _counted(self, name: str) -> Callable[..., Any]:
        method = getattr(self.log, name)

        async def counted(*args: Any, **options: Any) -> Any:
            self.reads[name] += 1
            return await method(*args, **options)

        return counted


async def fill(hub: Hub, count: int, *, size: int = 10, every: int = 2) -> None:
    """Publish so many events; the last of every so many is news."""
    for number in range(count):
        await hub.publish("news" if number % every == every - 1 else "other", f"{number}".ljust(size))
    await hub.refresh()


async def come_back(hub: Hub, places: list[str], **options: Any) -> list[Outlet]:
    """Subscribers at these places, all at once; the outlets have what was missed."""
    outlets = [Outlet() for _ in places]
    await asyncio.gather(
        *(
            hub.subscribe(("news",), outlet, encode=encode_line, last_event_id=place, **options)
            for outlet, place in zip(outlets, places, strict=True)
        )
    )
    return outlets


def place(hub: Hub, offset: int) -> str:
    """The id of a place in the journal."""
    return position_id(hub._journal.epoch, offset)


@pytest.mark.many
async def test_reconnect_storm_reads_each_journal_page_once() -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store) as hub:
        await fill(hub, 6_000, every=20)
        newest = hub._journal.offset
        store.reads.clear()
        places = [newest - 5_900 + number * 8 for number in range(500)]
        outlets = await come_back(hub, [place(hub, each) for each in places])
        assert sum(store.reads.values()) <= 20
        assert not any(outlet.gaps for outlet in outlets)
        for outlet, at in zip(outlets[::97], places[::97], strict=True):
            wanted = [f"{number}".ljust(10) for number in range(19, 6_000, 20) if number + 2 > at]
            assert outlet.data == wanted


async def test_subscribers_share_one_history_read() -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store, history=100) as hub:
        await fill(hub, 3_000)
        store.reads.clear()
        outlets = await come_back(hub, [f"lost:{number}" for number in range(500)])
        assert sum(store.reads.values()) <= 20
        first = outlets[0]
        assert first.gaps == ["unknown"]
        assert len(first.data) == 100
        assert all(outlet.data == first.data for outlet in outlets)


async def test_events_after_a_shared_read_are_delivered() -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store) as hub:
        await fill(hub, 3_000)
        early = place(hub, 100)
        (one,) = await come_back(hub, [early])
        (lost,) = await come_back(hub, ["lost"])
        for number in range(5):
            await hub.publish("news", f"later {number}")
            (again,) = await come_back(hub, [early])
            assert again.data == one.data
            (fresh,) = await come_back(hub, ["lost"])
            assert fresh.data == lost.data
            assert fresh.data[-1] == f"later {number}"
        assert [event.data for event in await hub.history("news", 1)] == [b"later 4"]


@pytest.mark.many
@for_each("kept", [700, 1_234])
async def test_oldest_page_of_a_trimmed_journal_is_shared(kept: int) -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store, journal=4_000, history=1) as hub:
        await fill(hub, 4_000 + kept, every=20)
        newest = hub._journal.offset
        store.reads.clear()
        outlets = await come_back(hub, [place(hub, newest - 4_000 + 1 + number % 90) for number in range(400)])
        assert sum(store.reads.values()) <= 20
        assert not any(outlet.gaps for outlet in outlets)
        (gone,) = await come_back(hub, [place(hub, newest - 4_200)])
        assert gone.gaps == ["trimmed"]


async def test_oversized_pages_are_not_cached() -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store) as hub:
        await fill(hub, 2_600, size=12_000)
        outlets = await come_back(hub, [place(hub, number) for number in (5, 6, 600)])
        assert [len(outlet.data) for outlet in outlets] == [1_298, 1_298, 1_001]
        assert 0 < hub._delivery.reader._pages.bytes <= 16 * 1024 * 1024


async def test_leaving_during_a_shared_read_does_not_affect_others() -> None:
    store = CountedStore(MemoryStore())
    async with open_hub(store) as hub:
        await fill(hub, 3_000)
        outlets = [Outlet(), Outlet()]
        tasks = [
            asyncio.create_task(hub.subscribe(("news",), outlet, encode=encode_line, last_event_id=place(hub, 10)))
            for outlet in outlets
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert outlets[1].gaps == []
        assert len(outlets[1].data) == 1_496
        assert await listen(hub)


async def test_read_in_progress_is_not_shared_with_later_requests() -> None:
    shared, slow = SharedReads[list[int]](len), asyncio.Event()

    def read(*offsets: int) -> Callable[[], Any]:
        async def found() -> list[int]:
            await slow.wait()
            return list(offsets)

        return found

    def ask(since: int, floor: int, *offsets: int) -> asyncio.Task[Any]:
        usable = shared.get(("news",), read(*offsets), since=since, usable=lambda begun, _: begun >= floor)
        return asyncio.create_task(usable)

    asked = [ask(2, 0, 1, 2), ask(3, 2, 1, 2, 3), ask(4_000, 3, 1, 2, 3, 4)]
    await asyncio.sleep(0)
    slow.set()
    assert [len(found) for found in await asyncio.gather(*asked)] == [2, 2, 4]
    assert len(await shared.get(("news",), read(), since=4_000)) == 4
    shared.forget()


@for_each("id", ["made up", ""])
async def test_one_callers_replays_wait_for_their_turn(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    async with open_hub() as hub:
        await fill(hub, 1_500)
        id = id or place(hub, 1)
        at_once = REPLAYS.count // 1_500 + 1
        outlets = [Outlet() for _ in range(at_once + 20)]
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(
                hub.subscribe(("*",), outlet, encode=encode_line, last_event_id=id, address="192.0.2.1")
            )
            for outlet in outlets
        ]

        async def count_served() -> int:
            before = -1
            while before != (before := sum(task.done() for task in waiting)):
                await turns(200)
            return before

        assert at_once - 2 <= await count_served() <= at_once
        other = Outlet()
        await hub.subscribe(("*",), other, encode=encode_line, last_event_id=id, address="192.0.2.2")
        assert len(other.data) >= 1_499
        now += 1.0
        assert at_once <= await count_served() <= at_once + 15
        assert {len(outlet.data) for outlet in outlets} == {0, len(other.data)}
        for outlet in outlets:
            outlet.close()
        assert await count_served() == len(outlets)
        waiting.append(asyncio.create_task(come_back(hub, [id], address="192.0.2.1")))  # the turns of those are its own
        now += 0.2
        assert await count_served() == len(waiting)
