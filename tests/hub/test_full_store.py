from backend_stores import stored_bytes
from hub_parts import Clock, MemoryStore, listen, open_hub, receive

ROOM = 64_000


def full(clock: Clock) -> MemoryStore:
    """A store that holds far less than the hub's counts allow."""
    return MemoryStore(clock=clock, max_log_bytes=ROOM)


async def test_acknowledged_events_are_delivered_once_with_a_full_store() -> None:
    clock = Clock()
    store = full(clock)
    async with open_hub(store, clock=clock) as hub:
        outlets = [await listen(hub, ">"), await listen(hub, "c0", "c1", "c2")]
        for number in range(300):
            await hub.publish(f"c{number % 3}", f"{number} " + "x" * (number * 97 % 6_000))
        for outlet in outlets:
            assert [int(data.split()[0]) for data in outlet.data] == list(range(300))
            assert outlet.gaps == []
        assert hub.stats().gaps == 0
        assert stored_bytes(store.log) <= ROOM


async def test_busy_channel_does_not_evict_mailboxes_or_quiet_history() -> None:
    clock = Clock()
    async with open_hub(full(clock), clock=clock) as hub:
        await hub.send("bob", "hello")
        await hub.publish("quiet", "word")
        for _ in range(200):
            await hub.publish("busy", "x" * 2_000)
        assert [event.data for event in await hub.history("quiet")] == [b"word"]
        assert (await receive(hub, "bob")).data == ["hello"]
        assert len(await hub.history("busy", 1_000)) > 5


async def test_resume_from_a_full_store_reports_a_gap() -> None:
    clock = Clock()
    store = full(clock)
    async with open_hub(store, clock=clock) as hub:
        last = (await listen(hub)).last_id
        for number in range(200):
            await hub.publish("broadcast", f"{number} " + "x" * 2_000)
    async with open_hub(store, clock=clock) as hub:  # one that remembers nothing of its own
        again = await listen(hub, last_event_id=last)
        heard = [int(data.split()[0]) for data in again.data]
        assert again.gaps == ["trimmed"]
        assert heard == list(range(heard[0], 200))
        assert 0 < heard[0] < 195


async def test_large_calls_and_events_do_not_evict_mailboxes() -> None:
    clock = Clock()
    store = full(clock)
    async with open_hub(store, clock=clock) as hub:
        for number in range(5):
            await hub.send("bob", f"{number} " + "x" * 10_000)
        for number in range(100):
            await store.log.append(f"call:{number}:a", bytes(9_000), ttl=100.0, max_entries=10)
            await hub.publish("busy", "x" * 9_000)
    async with open_hub(store, clock=clock) as hub:  # one that remembers nothing of its own
        outlet = await receive(hub, "bob")
        assert ([data.split()[0] for data in outlet.data], outlet.gaps) == (list("01234"), [])
