"""The hub on a store that is full: the oldest goes, and what is acknowledged is heard."""

from hub_parts import Clock, listen, receive, running
from millstream._stores.memory.store import MemoryStore

ROOM = 64_000


def full(clock: Clock) -> MemoryStore:
    """A store that holds far less than the hub's counts allow."""
    return MemoryStore(clock=clock, max_log_bytes=ROOM)


async def test_every_acknowledged_publication_is_heard_once_though_the_store_is_full() -> None:
    """Fixed defect: the log forgot the journal between a publication and its delivery."""
    clock = Clock()
    store = full(clock)
    async with running(store, clock=clock) as hub:
        outlets = [await listen(hub, ">"), await listen(hub, "c0", "c1", "c2")]
        for number in range(300):
            await hub.publish(f"c{number % 3}", f"{number} " + "x" * (number * 97 % 6_000))
        for outlet in outlets:
            assert [int(data.split()[0]) for data in outlet.data] == list(range(300))
            assert outlet.gaps == []
        assert hub.stats().gaps == 0
        assert store.log.size <= ROOM


async def test_a_busy_channel_takes_no_mailbox_and_no_quiet_history_with_it() -> None:
    """Fixed defect: a flood on one channel wiped what every other one had kept."""
    clock = Clock()
    async with running(full(clock), clock=clock) as hub:
        await hub.send("bob", "hello")
        await hub.publish("quiet", "word")
        for _ in range(200):
            await hub.publish("busy", "x" * 2_000)
        assert [event.data for event in await hub.history("quiet")] == [b"word"]
        assert (await receive(hub, "bob")).data == ["hello"]
        assert len(await hub.history("busy", 1_000)) > 5


async def test_who_returns_to_a_full_store_is_told_of_the_gap_and_gets_what_is_left() -> None:
    """Our choice: what is gone is told, whatever made it go."""
    clock = Clock()
    store = full(clock)
    async with running(store, clock=clock) as hub:
        last = (await listen(hub)).last_id
        for number in range(200):
            await hub.publish("broadcast", f"{number} " + "x" * 2_000)
    async with running(store, clock=clock) as hub:  # one that remembers nothing of its own
        again = await listen(hub, last_event_id=last)
        heard = [int(data.split()[0]) for data in again.data]
        assert again.gaps == ["trimmed"]
        assert heard == list(range(heard[0], 200))
        assert 0 < heard[0] < 195


async def test_calls_and_publications_however_large_take_no_mailbox_with_them() -> None:
    """Fixed defect: one call's resumable stream could drive out a mailbox."""
    clock = Clock()
    store = full(clock)
    async with running(store, clock=clock) as hub:
        for number in range(5):
            await hub.send("bob", f"{number} " + "x" * 10_000)
        for number in range(100):
            await store.log.append(f"call:{number}:a", bytes(9_000), ttl=100.0, max_entries=10)
            await hub.publish("busy", "x" * 9_000)
    async with running(store, clock=clock) as hub:  # one that remembers nothing of its own
        outlet = await receive(hub, "bob")
        assert ([data.split()[0] for data in outlet.data], outlet.gaps) == (list("01234"), [])
