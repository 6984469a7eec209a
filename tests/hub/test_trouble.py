import asyncio
import logging
from typing import Any

import pytest

from backend_stores import MemoryStore
from hub_parts import Clock, DelayedStore, Outlet, encode_line, listen, open_hub, receive, turns
from millstream._protocol.errors import LocalError
from millstream._stores.base import PAGE_BYTES, Gap
from millstream.hub import Event
from millstream.hub._event import StoredEvent
from patience import WAIT


class Unreliable:
    """One part of a store, whose methods fail while `down`."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise LocalError("The store cannot be reached.")
        return getattr(self._part, name)


def unreliable(part: str, store: MemoryStore) -> tuple[Any, Unreliable]:
    """A store of which one part can go down."""
    distant: Any = DelayedStore(lambda: 0, store)
    broken = Unreliable(getattr(distant, part))
    setattr(distant, part, broken)
    return distant, broken


async def test_failed_publish_raises_for_the_publisher() -> None:
    store, log = unreliable("log", MemoryStore())
    async with open_hub(store) as hub:
        outlet = await listen(hub)
        log.down = True
        with pytest.raises(LocalError):
            await hub.publish("broadcast", "1")
        log.down = False
        await hub.publish("broadcast", "2")
        assert outlet.data == ["2"]


async def test_failed_subscription_leaves_nothing_on_its_outlet() -> None:
    store, log = unreliable("log", MemoryStore())
    async with open_hub(store) as hub:
        outlet = await listen(hub, "kept")
        callbacks = len(outlet._callbacks)
        log.down = True
        for _ in range(3):
            with pytest.raises(LocalError):
                await hub.subscribe(("new",), outlet, encode=encode_line, history=5)
        log.down = False
        assert (hub.stats().subscribers, len(outlet._callbacks)) == (1, callbacks)
        await hub.subscribe(("new",), outlet, encode=encode_line, history=5)
        await hub.publish("new", "1")
        await hub.publish("kept", "2")
        assert outlet.data == ["1", "2"]


async def test_reading_resumes_after_a_store_outage(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream._troubles.PAUSE", 0)
    memory = MemoryStore()
    store, log = unreliable("log", memory)
    async with open_hub(store) as hub, open_hub(memory) as other:
        outlet = await listen(hub)
        log.down = True
        with caplog.at_level(logging.CRITICAL, "millstream"):
            await other.publish("broadcast", "1")
            await turns()
            log.down = False
            assert await outlet.until(1) == ["1"]


async def test_subscriber_is_served_without_presence(caplog: pytest.LogCaptureFixture) -> None:
    store, kv = unreliable("kv", MemoryStore())
    async with open_hub(store) as hub:
        kv.down = True
        with caplog.at_level(logging.CRITICAL, "millstream"):
            outlet = await listen(hub, client_id="ann")
            await hub.publish("broadcast", "1")
            assert outlet.data == ["1"]
            late = await listen(hub, client_id="bob")
            outlet.close()
            await turns()
        kv.down = False
        await hub.refresh()
        assert [member.client_id for member in await hub.presence("broadcast")] == ["bob"], "tried again"
        late.close()
        await turns()
        assert await hub.presence("broadcast") == []


async def test_presence_changes_during_an_outage_are_sent_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, kv = unreliable("kv", MemoryStore())
    async with open_hub(store) as hub:
        gone = await listen(hub, "a", "b", client_id="gone")
        kv.down = True
        await listen(hub, "a", "b", client_id="here")
        gone.close()
        await turns()
        kv.down = False
        await hub.refresh()
        for channel in ("a", "b"):
            assert [member.client_id for member in await hub.presence(channel)] == ["here"]
        last = await listen(hub, "a", client_id="last")
        last.close()
        await turns()
    first, last = caplog.records
    assert first.getMessage() == "The hub can't publish presence events; retrying: The store cannot be reached."
    assert last.getMessage().startswith("The hub can publish presence events again. It failed 4 times since ")
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)] * 2


async def test_periodic_work_survives_a_store_outage(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, kv = unreliable("kv", MemoryStore())
    tries = 0
    tried = asyncio.Event()
    async with open_hub(store, refresh=0.001) as hub:
        refresh = hub._presence.refresh

        async def counted() -> None:
            nonlocal tries
            tries += 1
            if tries == 3:
                tried.set()
            await refresh()

        monkeypatch.setattr(type(hub._presence), "refresh", lambda _: counted())
        kv.down = True
        with caplog.at_level(logging.CRITICAL, "millstream"):
            await asyncio.wait_for(tried.wait(), WAIT)
            kv.down = False


async def test_lost_journal_is_reported_as_a_gap() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub:
        outlet = await listen(hub)
        await hub.publish("broadcast", "1")
        last = outlet.last_id
        await store.log.trim("hub:journal")
        await hub.refresh()
        await hub.publish("broadcast", "2")
        assert (outlet.gaps, outlet.data) == (["lost"], ["1", "2"])
        await hub.publish("broadcast", "3")
        await store.log.trim("hub:journal")
        await hub.publish("broadcast", "4")
        assert (outlet.gaps, outlet.data) == (["lost", "lost"], ["1", "2", "3", "4"])
        again = await listen(hub, last_event_id=last)
        assert again.data == ["2", "3", "4"], "the history is kept"


async def test_new_epoch_reports_a_gap_and_delivery_continues() -> None:
    store: Any = DelayedStore(lambda: 0, MemoryStore(epoch="one"))
    async with open_hub(store) as hub:
        outlet = await listen(hub)
        await hub.publish("broadcast", "1")
        last = outlet.last_id
        anew = MemoryStore(epoch="two")
        await anew.log.append("hub:journal", b"", ttl=1.0, max_entries=1)  # offsets need not begin where others did
        await anew.log.trim("hub:journal")
        store.epoch = "two"
        store.log.replace(anew.log)
        await hub.publish("broadcast", "2")
        await hub.publish("broadcast", "3")
        assert (outlet.gaps, outlet.data) == (["lost"], ["1", "2", "3"])
        assert outlet.last_id.startswith("two.")
        again = await listen(hub, last_event_id=last)
        assert (again.gaps, again.data) == (["unknown"], ["2", "3"])


async def test_event_ids_contain_the_append_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.tail.PATIENCE", 0)
    store: Any = DelayedStore(lambda: 0, MemoryStore(epoch="one"))
    async with open_hub(store) as hub:
        outlet = await listen(hub)
        append = store.log.append

        async def lose_everything_behind_it(*args: Any, **options: Any) -> Any:
            position = await append(*args, **options)
            del store.log.append
            store.epoch = "two"
            store.log.replace(MemoryStore(epoch="two").log)
            await hub.publish("broadcast", "new")
            return position

        store.log.append = lose_everything_behind_it
        published = await hub.publish("broadcast", "old")
        assert published.id.startswith("one.")
        assert outlet.last_id.startswith("two.")
        again = await listen(hub, last_event_id=published.id)
        assert (again.gaps, again.data) == (["unknown"], ["new"])


async def test_epoch_change_during_catch_up_is_reported_as_a_gap() -> None:
    store: Any = DelayedStore(lambda: 0, MemoryStore(epoch="one"))
    async with open_hub(store) as hub:
        last = (await listen(hub)).last_id
        for _ in range(3):
            await hub.publish("broadcast", "x" * 60_000)
        outlet = Outlet()
        task = asyncio.create_task(hub.subscribe(["broadcast"], outlet, encode=encode_line, last_event_id=last))
        await turns(1)
        store.epoch = "two"
        store.log.replace(MemoryStore(epoch="two").log)
        await hub.publish("broadcast", "new")
        await task
        assert outlet.gaps in (["epoch"], ["lost"]), "whoever notices first"
        assert outlet.data[-1] == "new"


async def test_publisher_ids_are_found_during_trimming() -> None:
    memory = MemoryStore()
    async with open_hub(memory) as hub:
        for number in range(3_000):
            await hub.publish("broadcast", "x" * 2_000, id=f"own {number}")
    store: Any = DelayedStore(lambda: 0, memory)
    read, reads = store.log.read, 0

    async def reading(stream: str, after: Any, limit: int = 1000, max_bytes: int = PAGE_BYTES) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise Gap(memory.epoch, None)
        return await read(stream, after, limit, max_bytes)

    async with open_hub(store) as hub:
        store.log.read = reading
        outlet = await listen(hub, last_event_id="own 500")
        assert outlet.gaps == []
        assert len(outlet.data) == 2_499


async def test_new_epoch_does_not_repeat_old_events() -> None:
    memory = MemoryStore(epoch="one")
    store: Any = DelayedStore(lambda: 0, memory)
    async with open_hub(store) as hub:
        outlet, slow = await listen(hub), Outlet()
        start = outlet.last_id
        for number in range(200):
            await hub.publish("broadcast", f"{number} {'x' * 1_000}")
        catching_up = asyncio.create_task(hub.subscribe(["broadcast"], slow, encode=encode_line, last_event_id=start))
        await turns(1)
        replica = MemoryStore(epoch="two")
        for entry in await memory.log.read("hub:journal", None):
            await replica.log.append("hub:journal", entry.data, ttl=60.0, max_entries=10_000)
        store.epoch = "two"
        store.log.replace(replica.log)
        await hub.refresh()
        await hub.publish("broadcast", "new")
        await catching_up
        for each in (outlet, slow):
            assert len(each.gaps) == 1
            assert len(each.data) == len(set(each.data))
            assert each.data[-1] == "new"


async def test_outlets_skip_unsupported_messages() -> None:
    def only_data(event: Event) -> bytes:
        return event.data or b""

    async with open_hub() as hub:
        outlet = Outlet()
        await hub.subscribe(["broadcast"], outlet, encode=only_data)
        await hub.refresh()
        assert outlet.chunks == []
        await hub.publish("broadcast", "x")
        assert outlet.chunks == [b"x"]


async def test_delivery_plan_cache_overflow_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._delivery._MAX_PLANS", 2)
    async with open_hub() as hub:
        outlet = await listen(hub, "*")
        for number in range(5):
            await hub.publish(f"c{number}", str(number))
        assert outlet.data == list("01234")


async def test_made_up_client_ids_cause_no_stored_data() -> None:
    store = MemoryStore(clock=Clock())
    async with open_hub(store) as hub:
        for number in range(50):
            (await receive(hub, f"made-up-{number}")).close()
        await turns()
        await hub.refresh()
        assert await store.kv.keys("") == []


async def test_zero_history_size_disables_history() -> None:
    async with open_hub(history=0, mailbox=0) as hub:
        last = (await listen(hub)).last_id
        await hub.publish("broadcast", "1")
        await hub.send("me", "1")
        assert await hub.history("broadcast") == []
        assert (await listen(hub, last_event_id=last)).data == ["1"]


async def test_unannounced_journal_events_are_delivered_at_the_next_refresh() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub)
        await hub._journal.append(StoredEvent("broadcast", b"1", None, None, 1000.0))
        await hub.refresh()
        assert outlet.data == ["1"]


async def test_starting_worker_needs_one_read_of_a_long_journal() -> None:
    memory = MemoryStore()
    async with open_hub(memory) as hub:
        last = (await listen(hub)).last_id
        for number in range(3000):
            await hub.publish("broadcast", str(number))
        store: Any = DelayedStore(lambda: 0, memory)
        distant, reads = store.log, 0

        class Counting:
            async def newest(self, stream: str, limit: int, max_bytes: int = PAGE_BYTES) -> Any:
                nonlocal reads
                reads += stream == "hub:journal"
                return await distant.newest(stream, limit, max_bytes)

            def __getattr__(self, name: str) -> Any:
                return getattr(distant, name)

        store.log = Counting()
        async with open_hub(store) as other:
            assert reads == 1
            assert (await listen(other, last_event_id=last)).data == list(map(str, range(3000)))


async def test_position_before_a_trimmed_epoch_start_is_reported_as_a_gap() -> None:
    async with open_hub(MemoryStore(epoch="here")) as hub:
        for _ in range(4200):
            await hub.publish("broadcast", "x" * 1000)
        outlet = await listen(hub, last_event_id="here.0")
        assert outlet.gaps == ["trimmed"]
