import asyncio
import sys
import tracemalloc
from typing import Any

import pytest

from hub_parts import DelayedStore, MemoryStore, Outlet, encode_line, listen, open_hub
from millstream.hub import Hub

MIB = 1024 * 1024


class UnreadOutlet(Outlet):
    """An outlet whose peer reads nothing."""

    def __init__(self) -> None:
        super().__init__(takes=False)
        self._room = asyncio.Event()

    async def drain(self) -> None:
        """Wait until it is closed."""
        self.on_close(self._room.set)
        await self._room.wait()


async def resume_unread(hub: Hub, count: int, last_event_id: str) -> tuple[list[UnreadOutlet], list[asyncio.Task[Any]]]:
    """Resume subscribers that read nothing, one by one, until all of them wait."""
    outlets, tasks = [UnreadOutlet() for _ in range(count)], []
    for outlet in outlets:
        subscribing = hub.subscribe(["news"], outlet, encode=encode_line, last_event_id=last_event_id)
        tasks.append(asyncio.create_task(subscribing))
        for _ in range(100):
            await asyncio.sleep(0)
    return outlets, tasks


async def end(outlets: list[UnreadOutlet], tasks: list[asyncio.Task[Any]]) -> None:
    """Close them."""
    for outlet in outlets:
        outlet.close()
    await asyncio.gather(*tasks)


@pytest.mark.many
async def test_resuming_subscribers_share_missed_events_in_memory() -> None:
    async with open_hub(MemoryStore(), journal=300) as hub:
        start = (await hub.publish("news", "start")).id
        for number in range(1_200):
            await hub.publish("news" if number % 2 else "other", f"{number}".ljust(20_000))
        in_journal = f"{start.rpartition('.')[0]}.{hub._journal.offset - 290}"
        for last_event_id in ("unknown", start, in_journal):
            tracemalloc.start()
            outlets, tasks = await resume_unread(hub, 40, last_event_id)
            unread = sum(outlet.buffered for outlet in outlets)
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert unread <= 40 * (64 * 1024 + 30_000)
            assert held - unread < 4 * MIB
            await end(outlets, tasks)


async def test_catch_up_budget_disconnects_the_longest_waiting_subscriber() -> None:
    async with open_hub(MemoryStore(), max_unread=2 * MIB) as hub:
        start = (await hub.publish("news", "start")).id
        for number in range(100):
            await hub.publish("news", f"{number}".ljust(10_000))
        outlets, tasks = await resume_unread(hub, 40, start)
        assert sum(outlet.buffered for outlet in outlets if not outlet.closed) <= MIB
        open_ones = [outlet for outlet in outlets if not outlet.closed]
        assert open_ones == outlets[-len(open_ones) :]
        assert len(open_ones) >= 10
        assert outlets[0].events()[-1][:2] == ("cut", '{"reason":"slow"}')
        await end(outlets, tasks)


async def test_total_backlog_disconnects_the_subscriber_furthest_behind() -> None:
    async with open_hub(max_unread=200_000, max_buffered=100_000) as hub:
        slow, good = [Outlet(takes=False) for _ in range(20)], await listen(hub, "a", "b")
        for number, outlet in enumerate(slow):
            await hub.subscribe(["a"] if number < 18 else ["a", "b"], outlet, encode=encode_line)
        for number in range(40):
            await hub.publish("b" if number % 2 else "a", "x" * 1_000)
        unread = sum(outlet.buffered for outlet in slow if not outlet.closed)
        assert unread <= 300_000
        assert all(outlet.closed for outlet in slow[18:])
        assert not all(outlet.closed for outlet in slow)
        assert len(good.data) == 40


async def test_made_up_event_ids_search_the_journal_once() -> None:
    store: Any = DelayedStore(lambda: 0, MemoryStore())
    async with open_hub(store) as hub:
        for number in range(5_000):
            await hub.publish("news" if number > 4_990 else "other", str(number), id=f"own {number}")
    async with open_hub(store) as hub:
        reads = 0
        read = store.log.read

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args, **options)

        store.log.read = counted
        for number in range(200):
            assert (await listen(hub, last_event_id=f"made up {number}", history=0)).gaps == ["unknown"]
        assert reads < 30
        assert (await listen(hub, "*", last_event_id="own 1")).data == [str(number) for number in range(2, 5_000)]


async def test_publish_cost_is_independent_of_unrelated_patterns() -> None:
    async with open_hub() as hub:
        for number in range(2_000):
            await listen(hub, f"room{number}.*.>", f"*.side{number}")
        wanted = await listen(hub, "a.*.c")
        calls = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            await hub.publish("a.b.c", "x")
        finally:
            sys.setprofile(None)
        assert wanted.data == ["x"]
        assert calls < 150
