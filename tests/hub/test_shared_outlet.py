from typing import Any

from cases import for_each
from hub_parts import MemoryStore, Outlet, encode_line, open_hub, turns
from millstream.hub import Hub, Subscription


async def add(hub: Hub, outlet: Outlet, channel: str, **options: Any) -> Subscription:
    """One more subscription on an outlet."""
    return await hub.subscribe((channel,), outlet, encode=encode_line, **options)


@for_each("channels", [("broadcast", ">"), (">", "broadcast"), ("*", ">", "broadcast")])
async def test_overlapping_subscriptions_write_an_event_once(channels: tuple[str, ...]) -> None:
    async with open_hub() as hub:
        outlet = Outlet()
        for channel in channels:
            await add(hub, outlet, channel)
        assert (await hub.publish("broadcast", "1")).subscribers == 1
        await hub.publish("other", "2")
        assert outlet.data == ["1", "2"]


async def test_position_is_sent_once_per_outlet() -> None:
    async with open_hub() as hub:
        outlet = Outlet()
        for channel in ("a", "b", ">"):
            await add(hub, outlet, channel)
        before = len(outlet.events())
        await hub.refresh()
        assert len(outlet.events()) == before + 1


@for_each("first", [0, 1])
async def test_remaining_subscription_continues_writing(first: int) -> None:
    async with open_hub() as hub:
        outlet = Outlet()
        both = [await add(hub, outlet, channel) for channel in ("broadcast", ">")]
        both.pop(first).handle_close()
        await hub.publish("broadcast", "1")
        both.pop().handle_close()
        await hub.publish("broadcast", "2")
        assert (outlet.data, outlet.closed) == (["1"], False)
        assert hub.stats().subscribers == 0


async def test_resuming_next_to_another_subscription_skips_written_events() -> None:
    async with open_hub() as hub:
        outlet = Outlet()
        start = (await hub.publish("broadcast", "0")).id
        await hub.publish("broadcast", "1")
        await hub.publish("other", "2")
        await add(hub, outlet, "broadcast")
        await hub.publish("broadcast", "3")
        await hub.publish("other", "4")
        assert outlet.data == ["3"]
        await add(hub, outlet, ">", last_event_id=start)
        assert outlet.data == ["3", "1", "2", "4"]
        await add(hub, outlet, "other", last_event_id=start)
        await add(hub, outlet, "*", last_event_id="unknown")
        assert outlet.data == ["3", "1", "2", "4", "0"]


async def test_gap_in_one_subscription_does_not_hold_back_the_other() -> None:
    store, outlet = MemoryStore(), Outlet()
    async with open_hub(store, journal=3) as hub:
        start = (await hub.publish("quiet", "0")).id
        for number in range(1, 6):
            await hub.publish("quiet" if number == 1 else "busy", str(number))
    async with open_hub(store, journal=3) as hub:  # which remembers nothing itself
        await add(hub, outlet, ">", last_event_id=start)
        assert (outlet.gaps, outlet.data) == (["trimmed"], ["3", "4", "5"])
        await add(hub, outlet, "quiet", last_event_id=start)
        assert outlet.data == ["3", "4", "5", "1"]


async def test_slow_outlet_is_disconnected_once_with_all_subscriptions() -> None:
    async with open_hub(max_buffered=1000) as hub:
        outlet = Outlet(takes=False)
        for channel in ("broadcast", ">"):
            await add(hub, outlet, channel)
        await hub.publish("broadcast", "x" * 2000)
        await turns()
        assert hub.stats().disconnected == {"slow": 1}
        assert (outlet.closed, hub.stats().subscribers) == (True, 0)


async def test_slowest_outlets_are_disconnected_first() -> None:
    async with open_hub() as hub:
        slow, fast = Outlet(takes=False), Outlet()
        await add(hub, fast, "a")
        for channel in ("a", "b"):
            await add(hub, slow, channel)
        await hub.publish("b", "late")
        found = hub.slowest(1)
        assert [[each.channels for each in subscriptions] for subscriptions in found] == [[("a",), ("b",)]]
        assert len(hub.slowest(9)) == 2
