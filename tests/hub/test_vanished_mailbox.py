from typing import Any

from cases import for_each
from hub_parts import Clock, DelayedStore, MemoryStore, listen, open_hub, receive, turns
from millstream import Principal
from millstream.hub import Hub, HubLimits

SMALL = 20_000
"""Bytes of a log that a few events fill."""


@for_each("was_here", [False, True])
@for_each("with_id", [False, True])
async def test_expired_mailbox_is_reported_as_a_gap(was_here: bool, with_id: bool) -> None:
    clock = Clock()
    async with open_hub(clock=clock, mailbox_age=60.0) as hub:
        last_id = ""
        if was_here or with_id:
            outlet = await receive(hub, "me")
            await hub.send("me", "read")
            last_id = outlet.last_id if with_id else ""
            outlet.close()
            await turns()
        for number in range(3):
            await hub.send("me", str(number))
        clock.now += 100
        outlet = await receive(hub, "me", last_event_id=last_id)
        assert (outlet.gaps, outlet.data) == (["expired"], [])


@for_each("with_id", [False, True])
async def test_mailbox_messages_dropped_by_a_full_store_cause_a_gap(with_id: bool) -> None:
    clock = Clock()
    store = MemoryStore(clock=clock, max_log_bytes=SMALL)
    async with open_hub(store, clock=clock) as hub:
        outlet = await receive(hub, "me")
        await hub.send("me", "read")
        last_id = outlet.last_id if with_id else ""
        outlet.close()
        await turns()
        for number in range(40):
            await hub.send("me", f"{number}".ljust(500))
    async with open_hub(store, clock=clock) as hub:  # which remembers nothing itself
        outlet = await receive(hub, "me", last_event_id=last_id)
        assert outlet.gaps == ["trimmed"]
        left = [int(data) for data in outlet.data]
        assert left == list(range(left[0], 40))
        assert left[0] > 0


async def test_mailbox_evicted_by_a_full_store_is_reported_as_a_gap() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with open_hub(store, clock=clock) as hub:
        await hub.send("me", "1")
    for stream in ("mailbox:me", "hub:journal"):
        await store.log.trim(stream)
    async with open_hub(store, clock=clock) as hub:
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == (["trimmed"], [])


async def test_mailbox_gap_is_reported_once() -> None:
    clock = Clock()
    async with open_hub(clock=clock, mailbox_age=60.0) as hub:
        await hub.send("me", "lost")
        clock.now += 100
        outlet = await receive(hub, "me")
        assert outlet.gaps == ["expired"]
        await hub.send("me", "live")
        outlet.close()
        await turns()
        clock.now += 100
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == ([], [])
        outlet.close()
        await turns()
        await hub.send("me", "waits")
        clock.now += 30
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == ([], ["waits"])


async def test_delivered_messages_cause_no_gap() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    bounds = {"mailbox_age": 60.0, "history_age": 60.0}
    async with open_hub(store, clock=clock, **bounds) as one, open_hub(store, clock=clock, **bounds) as two:
        outlet = await receive(one, "me")
        await one.send("me", "1")
        assert await store.kv.keys("debt:") == []
        await two.send("me", "2")
        assert len(await store.kv.keys("debt:")) == 1
        await turns()
        clock.now += 100
        async with open_hub(store, clock=clock, **bounds) as three:  # as if `one` had died
            again = await receive(three, "me")
            assert (again.gaps, again.data) == ([], [])
            again.close()
            await turns()
            assert await store.kv.keys("debt:") == []
        await two.send("me", "3")
        outlet.close()
        await turns()
        assert await store.kv.keys("debt:") == [], "leaving tidies up"


async def test_new_losses_are_reported_after_old_ones() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    bounds = {"mailbox_age": 60.0, "history_age": 60.0}
    async with open_hub(store, clock=clock, **bounds) as two:
        one = Hub(store, HubLimits(**bounds), clock=clock)
        await one.open()
        await receive(one, "me")
        await two.send("me", "1")
        await turns()
        for task in one._tasks:  # it dies, and leaves the debt behind
            task.cancel()
        await one._delivery.close()
        await two.send("me", "2")
        clock.now += 100
        outlet = await receive(two, "me")
        assert (outlet.gaps, outlet.data) == (["expired"], [])


async def test_unread_messages_are_not_reported_as_missing() -> None:
    store = MemoryStore()
    async with open_hub(store) as one, open_hub(store) as two:
        await one.send("me", "1")
        outlet = await receive(two, "me")
        assert (outlet.gaps, outlet.data) == ([], ["1"])


async def test_loss_records_for_made_up_clients_evict_the_oldest() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock, max_value_bytes=20_000)
    async with open_hub(store, clock=clock, mailbox_age=60.0) as hub:
        for number in range(200):
            await hub.send(f"made-up-{number}", "x")
        debts = await store.kv.keys("debt:")
        assert "debt:/made-up-199" in debts
        assert "debt:/made-up-0" not in debts
        assert store.kv.kinds["debt"].size <= 20_000
        await store.kv.put("session:ada", bytes(10_000), 60.0)
        assert (await receive(hub, "made-up-0")).data == ["x"], "the message itself is the log's"


async def test_made_up_clients_evict_only_their_owners_records() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock, max_value_bytes=20_000)
    alice, bob = Principal("alice"), Principal("bob")
    async with open_hub(store, clock=clock, mailbox_age=60.0) as hub:
        await hub.send("read", "x", principal=bob)
        (await receive(hub, "read", principal=bob)).close()
        await turns()
        await hub.send("unread", "x", principal=bob)
        for number in range(200):
            await hub.send(f"made-up-{number}", "x", principal=alice)
            (await receive(hub, f"made-up-{number}", principal=alice)).close()
            await turns()
            await hub.send(f"made-up-{number}", "y", principal=alice)
        assert (await receive(hub, "read", principal=bob)).data == []
        clock.now += 100
        assert (await receive(hub, "unread", principal=bob)).gaps == ["expired"]


async def test_cursors_for_made_up_clients_evict_the_oldest() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock, max_value_bytes=20_000)
    async with open_hub(store, clock=clock) as hub:
        watcher = await listen(hub, "$presence.chat")
        for number in range(200):
            await hub.send(f"made-up-{number}", "x")
            (await receive(hub, f"made-up-{number}")).close()
            await turns()
        assert "seen:/made-up-199" in await store.kv.keys("seen:")
        (await listen(hub, "chat", client_id="ann")).close()
        assert len(await watcher.until(2)) == 2
        assert store.kv.kinds["seen"].size <= 20_000


async def test_messages_from_an_unseen_epoch_are_reported_as_a_gap() -> None:
    clock = Clock()
    store: Any = DelayedStore(lambda: 0, MemoryStore(epoch="one", clock=clock))
    async with open_hub(store, clock=clock, mailbox_age=60.0) as hub:
        store.epoch = "two"
        store.log.replace(MemoryStore(epoch="two", clock=clock).log)
        await hub.send("me", "first of its epoch")
        clock.now += 100
        outlet = await receive(hub, "me")
        assert (outlet.gaps, outlet.data) == (["expired"], [])
