import asyncio
import json
from typing import Any

import pytest

from hub_parts import (
    Clients,
    Clock,
    DelayedStore,
    MemoryStore,
    Outlet,
    announced,
    encode_line,
    listen,
    open_hub,
    second_worker,
    turns,
)
from millstream.hub import Hub, HubLimits, Member
from patience import WAIT


async def names(hub: Hub, channel: str = "chat") -> list[str]:
    """The ids on a channel."""
    return [member.client_id for member in await hub.presence(channel)]


async def test_clients_with_an_id_are_present_until_they_leave() -> None:
    clock = Clock()
    async with open_hub(clock=clock) as hub:
        watcher = await listen(hub, "$presence.chat")
        ann = await listen(hub, "chat", client_id="ann", name="Ann B.")
        clock.now += 5
        bob = await listen(hub, "chat", "news", client_id="bob")
        await listen(hub, "chat")
        assert await hub.presence("chat") == [Member("ann", "Ann B.", 1000.0), Member("bob", "", 1005.0)]
        assert await names(hub, "news") == ["bob"]
        ann.close()
        await watcher.until(3)
        assert await names(hub) == ["bob"]
        bob.close()
        await watcher.until(4)
        assert [(event, json.loads(data or "")["client_id"]) for event, data, _ in watcher.events() if data] == [
            ("join", "ann"),
            ("join", "bob"),
            ("leave", "ann"),
            ("leave", "bob"),
        ]


async def test_presence_counts_a_client_once() -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "$presence.chat")
        one = await listen(hub, "chat", client_id="ann")
        two = await listen(hub, "chat", client_id="ann")
        one.close()
        await turns()
        assert await names(hub) == ["ann"]
        assert len(watcher.data) == 1
        two.close()
        await watcher.until(2)
        assert await names(hub) == []


async def test_subscription_closed_before_joining_leaves_presence_unchanged() -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "$presence.chat")
        await listen(hub, "chat", client_id="ann")
        ended = Outlet()
        ended.close()
        await hub.subscribe(("chat",), ended, encode=encode_line, client_id="ann")
        await turns()
        assert await names(hub) == ["ann"]
        assert len(watcher.data) == 1


async def test_leave_event_matches_the_join_event() -> None:
    clock, store = Clock(), MemoryStore()
    async with open_hub(store, clock=clock) as one, open_hub(second_worker(store), clock=clock) as two:
        watcher = await listen(two, "$presence.chat")
        first = await listen(one, "chat", client_id="ann", name="Ann")
        clock.now += 5
        second = await listen(one, "chat", client_id="ann", name="Ann Lee")
        third = await listen(two, "chat", client_id="ann")
        for each in (first, second, third):
            each.close()
            await turns()
        join, leave = [json.loads(data) for data in watcher.data]
        assert join == leave == {"client_id": "ann", "name": "Ann", "since": 1000.0}
        await listen(one, "chat", client_id="bob")
        clock.now += 5
        await listen(one, "chat", client_id="bob")
    async with open_hub(store, clock=clock) as late:
        again = await listen(late, "$presence.chat", last_event_id=watcher.last_id)
        (leave,) = [json.loads(data) for data in again.data]
        assert leave["since"] == 1005.0


async def test_patterns_and_hub_channels_have_no_presence() -> None:
    async with open_hub() as hub:
        await listen(hub, "$presence.chat", "chat.*", client_id="ann")
        assert await names(hub, "$presence.chat") == []
        assert await names(hub, "chat.1") == []
        assert hub.stats().published == 0


async def test_channel_presence_keys_do_not_collide() -> None:
    async with open_hub() as hub:
        await listen(hub, "chat", client_id="ann")
        await listen(hub, "chat.1", client_id="bob")
        assert await names(hub, "chat") == ["ann"]
        assert await names(hub, "chat.1") == ["bob"]


async def test_client_on_two_workers_joins_and_leaves_once() -> None:
    store = MemoryStore()
    async with open_hub(store) as one, open_hub(second_worker(store)) as two:
        watcher = await listen(one, "$presence.chat")
        first = await listen(one, "chat", client_id="ann")
        second = await listen(two, "chat", client_id="ann")
        assert await names(one) == await names(two) == ["ann"]
        first.close()
        await turns()
        assert await names(one) == ["ann"]
        second.close()
        await watcher.until(2)
        assert [event for event, data, _ in watcher.events() if data] == ["join", "leave"]


async def test_dead_workers_presence_expires() -> None:
    store = MemoryStore()
    given_up = second_worker(store)
    dead = Hub(given_up, HubLimits())  # type: ignore[arg-type]
    await dead.open()
    await listen(dead, "chat", client_id="ann")
    for task in dead._tasks:
        task.cancel()
    await dead._delivery.close()
    async with open_hub(second_worker(store)) as one, open_hub(second_worker(store)) as two:
        watcher = await listen(one, "$presence.chat")
        await listen(two, "chat", client_id="bob")
        for hub in (one, two):
            await hub.refresh()
        assert sorted(await names(one)) == ["ann", "bob"]
        await given_up.end_lease()
        assert await names(one) == ["bob"]
        for hub in (one, two):
            await hub.refresh()
        assert [event for event, data, _ in watcher.events() if data] == ["join", "leave"]
        assert json.loads(watcher.data[-1])["client_id"] == "ann"


async def test_stopping_worker_removes_its_presence() -> None:
    store = MemoryStore()
    async with open_hub(store) as one:
        watcher = await listen(one, "$presence.chat")
        async with open_hub(second_worker(store)) as two:
            await listen(two, "chat", client_id="ann")
            assert await names(one) == ["ann"]
        assert await names(one) == []
        await watcher.until(2)
        assert [event for event, data, _ in watcher.events() if data] == ["join", "leave"]


async def test_closing_the_hub_does_not_wait_for_presence_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.tail.PATIENCE", 1_000_000)
    store = MemoryStore()
    async with open_hub(store) as other:
        async with asyncio.timeout(WAIT), open_hub(second_worker(store)) as hub:
            await listen(hub, "chat", "news", client_id="ann")
        assert await names(other) == await names(other, "news") == []


async def test_concurrent_joins_and_leaves_leave_no_stale_presence() -> None:
    memory = MemoryStore()
    stores = [DelayedStore(lambda: 2, memory) for _ in range(2)]
    async with open_hub(stores[0]) as one, open_hub(stores[1]) as two:
        watcher = await listen(one, "$presence.chat")

        async def visit(hub: Hub) -> None:
            for _ in range(5):
                (await listen(hub, "chat", client_id="ann")).close()

        await asyncio.gather(*map(visit, [one, two, one, two]))
        async with asyncio.timeout(WAIT):
            while await names(one) or not watcher.data or watcher.events()[-1][0] != "leave":
                await turns()
        told = [event for event, data, _ in watcher.events() if data]
        assert told == ["join", "leave"] * (len(told) // 2)


async def test_stalled_worker_loses_and_regains_its_presence() -> None:
    memory = MemoryStore()
    store = second_worker(memory)
    async with open_hub(store) as stalled, open_hub(second_worker(memory)) as other:
        watcher = await listen(other, "$presence.chat")
        ann, bob = [await listen(stalled, "chat", client_id=name) for name in ("ann", "bob")]
        await store.end_lease()
        await other.refresh()
        bob.close()
        await turns()
        await stalled.refresh()
        assert await names(other) == ["ann"]
        ann.close()
        await watcher.until(6)
        told = [(event, json.loads(data)["client_id"]) for event, data, _ in watcher.events() if data]
        assert [event for event, who in told if who == "ann"] == ["join", "leave", "join", "leave"]
        assert [event for event, who in told if who == "bob"] == ["join", "leave"]


async def test_renamed_worker_registers_its_clients_again_immediately() -> None:
    memory = MemoryStore()
    store = second_worker(memory)
    async with open_hub(store, refresh=1_000_000) as renamed, open_hub(second_worker(memory)) as other:
        await listen(renamed, "chat", client_id="ann")
        await store.end_lease()
        await other.refresh()
        assert await names(other) == []
        await store.workers.renew()
        async with asyncio.timeout(WAIT):
            while await names(other) != ["ann"]:
                await turns()


async def test_client_that_returns_while_its_departure_is_published_stays() -> None:
    store = DelayedStore(lambda: 5, MemoryStore())
    clients = Clients(store)
    await clients.join("chat", "ann")
    leaving = asyncio.create_task(clients.leave("chat", "ann"))
    await turns(3)
    joining = asyncio.create_task(clients.join("chat", "ann"))
    await turns(3)
    store.epoch = "later"
    await asyncio.gather(leaving, joining, clients.presence.refresh())
    assert await clients.on("chat") == ["ann"]
    assert await announced(store) == ["join chat ann", "leave chat ann", "join chat ann"]


async def test_client_that_joins_while_its_worker_is_renamed_is_registered_again() -> None:
    memory = MemoryStore()
    store, other = DelayedStore(lambda: 5, memory), Clients(second_worker(memory))
    clients = Clients(store)
    await clients.join("chat", "ann")
    joining = asyncio.create_task(clients.join("chat", "bob"))
    await turns(3)
    await store.end_lease()
    await asyncio.gather(joining, clients.presence.refresh())
    await other.presence.refresh()
    await clients.presence.refresh()
    assert sorted(await other.on("chat")) == ["ann", "bob"]


async def test_canceled_join_of_a_disconnected_client_leaves_no_stale_presence() -> None:
    store = DelayedStore(lambda: 5, MemoryStore())
    for passed in range(60):
        clients = Clients(store)
        joining = asyncio.create_task(clients.join("chat", "ann"))
        await turns(passed)
        clients.presence.disconnect(("chat", "ann"), Member("ann"))
        joining.cancel()
        await asyncio.wait([joining])
        await clients.presence.update(("chat", "ann"))
        assert await clients.on("chat") == []


async def test_presence_is_renewed_before_its_records_expire() -> None:
    clock = Clock()
    async with open_hub(clock=clock, refresh=1_000_000) as hub:
        await listen(hub, "chat", client_id="ann")
        for _ in range(3):
            clock.now += 20 * 3600.0
            await hub.refresh()
            assert await names(hub) == ["ann"]


async def test_presence_events_do_not_evict_messages() -> None:
    async with open_hub() as hub:
        for number in range(5):
            await hub.publish("chat", str(number))
        for _ in range(30):
            (await listen(hub, "chat", client_id="ann")).close()
            await turns()
        for channel in ("$presence.chat", "$presence.*"):
            page = await listen(hub, "chat", channel, history=50)
            assert page.data == ["0", "1", "2", "3", "4"]
        assert await hub.history("$presence.chat") == []


async def test_presence_watchers_can_resume() -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "$presence.chat")
        last = watcher.last_id
        watcher.close()
        await listen(hub, "chat", client_id="ann")
        again = await listen(hub, "$presence.chat", last_event_id=last)
        assert (again.gaps, len(again.data)) == ([], 1)


async def test_presence_churn_does_not_evict_the_journal() -> None:
    async with open_hub(journal=100) as hub:
        reader = await listen(hub, "news.*")
        last = reader.last_id
        reader.close()
        for number in range(50):
            await hub.publish("news.eu", str(number))
        channels = [f"room{number}" for number in range(16)]
        for number in range(100):
            (await listen(hub, *channels, client_id=f"c{number}")).close()
            await turns()
        assert hub.stats().published > 3000
        again = await listen(hub, "news.*", last_event_id=last)
        assert (again.gaps, again.data) == ([], [str(number) for number in range(50)])


async def test_presence_events_resume_in_order() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        watcher = await listen(hub, "chat", "$presence.chat")
        for number in range(4):
            await listen(hub, "chat", client_id=f"a{number}")
            await hub.publish("chat", str(number))
            await listen(hub, "chat", client_id=f"b{number}")
            await listen(hub, "chat", client_id=f"c{number}")
        ids = [id for _, data, id in watcher.events()]
        told = [data for _, data, _ in watcher.events()]
        assert len(set(ids)) == len(ids)
        for hubs in (hub, None):
            async with open_hub(store) as other:  # which learns of them from the store
                for index, last in enumerate(ids):
                    again = await listen(hubs or other, "chat", "$presence.chat", last_event_id=last)
                    behind = [data for data in told[index + 1 :] if data is not None]
                    assert (again.gaps, again.data) == ([], behind)
                    once_more = await listen(hubs or other, "chat", "$presence.chat", last_event_id=again.last_id)
                    assert once_more.data == []


async def test_interrupted_presence_replay_loses_nothing() -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "chat", "$presence.chat")
        start = watcher.last_id
        for number in range(3):
            await listen(hub, "chat", client_id=f"a{number}")
            await hub.publish("chat", str(number))
        whole = await listen(hub, "chat", "$presence.chat", last_event_id=start)
        for cut in range(1, len(whole.chunks)):
            seen = Outlet()
            seen.chunks = whole.chunks[:cut]
            rest = await listen(hub, "chat", "$presence.chat", last_event_id=seen.last_id)
            assert seen.data + rest.data == watcher.data


async def test_subscribers_that_miss_excess_presence_events_receive_a_gap() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        watcher = await listen(hub, "$presence.chat")
        reader = await listen(hub, "chat")
        early = watcher.last_id
        for number in range(600):
            (await listen(hub, "chat", client_id=f"c{number}")).close()
            await turns(3)
        await turns()
        again = await listen(hub, "$presence.chat", last_event_id=early)
        assert again.gaps == ["trimmed"]
        assert len(again.data) == 1000
        async with open_hub(store) as late:
            for each in (hub, late):
                assert (await listen(each, "$presence.chat", last_event_id=early)).gaps == ["trimmed"]
                assert (await listen(each, "$presence.chat", last_event_id=watcher.last_id)).gaps == []
                assert (await listen(each, "chat", last_event_id=reader.last_id)).gaps == []


async def test_presence_events_during_catch_up_arrive_once() -> None:
    async with open_hub() as hub:
        last = (await listen(hub, "chat")).last_id
        for _ in range(40):
            await hub.publish("chat", "x" * 10_000)
        outlet = Outlet()
        task = asyncio.create_task(
            hub.subscribe(["chat", "$presence.chat"], outlet, encode=encode_line, last_event_id=last)
        )
        await turns(1)
        await listen(hub, "chat", client_id="ann")
        await task
        await listen(hub, "chat", client_id="bob")
        told = [json.loads(data)["client_id"] for event, data, _ in outlet.events() if event == "join" and data]
        assert told == ["ann", "bob"]


async def test_presence_events_are_not_repeated_across_subscriptions() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub, "$presence.chat")
        start = outlet.last_id
        await listen(hub, "chat", client_id="ann")
        for pattern in ("$presence.*", "$presence.>"):
            await hub.subscribe([pattern], outlet, encode=encode_line, last_event_id=start)
        await listen(hub, "chat", client_id="bob")
        assert [json.loads(data)["client_id"] for data in outlet.data] == ["ann", "bob"]


async def test_lost_presence_log_is_reported_as_a_gap() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        watcher = await listen(hub, "$presence.chat")
        start = watcher.last_id
        await listen(hub, "chat", client_id="ann")
        await store.log.trim("presence:events")
        await listen(hub, "chat", client_id="bob")
        assert watcher.gaps == ["lost"]
        assert [json.loads(data)["client_id"] for data in watcher.data] == ["ann", "bob"]
        assert (await listen(hub, "$presence.chat", last_event_id=start)).gaps == ["trimmed"]
        assert (await listen(hub, "$presence.chat", last_event_id=watcher.last_id)).gaps == []


async def test_presence_outlives_an_unexpected_error_of_the_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_hub() as hub:
        watcher = await listen(hub, "$presence.chat")
        ann, bob = await listen(hub, "chat", client_id="ann"), await listen(hub, "chat", client_id="bob")
        await watcher.until(2)
        tail: Any = hub._delivery.event_tail
        settle, failures = tail.settle, [KeyError("ann")]

        async def fail_once() -> None:
            if failures:
                raise failures.pop()
            await settle()

        monkeypatch.setattr(tail, "settle", fail_once)
        ann.close()
        await turns(200)
        assert "The hub can't publish a departure" in caplog.text
        bob.close()
        await watcher.until(3)
        left = [json.loads(data or "")["client_id"] for event, data, _ in watcher.events() if event == "leave"]
        assert left == ["bob"]
