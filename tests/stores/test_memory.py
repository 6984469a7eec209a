import gc
import sys
import tracemalloc

import pytest

from backend_stores import MemoryStore, stored_bytes
from cases import for_each
from millstream._stores.memory.log import ITEM_BYTES, SWEEP
from millstream.extensions import LocalError
from millstream.stores import MARK_BYTES, Gap, Position, StoreFull
from patience import Clock
from store_parts import open_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def append(
    store: MemoryStore, stream: str, data: bytes = b"", ttl: float = 60.0, max_entries: int = 1000
) -> Position:
    return await store.log.append(stream, data, ttl=ttl, max_entries=max_entries)


def run_without_loop(store: MemoryStore) -> None:
    steps = [
        store.open(),
        store.kv.put("key", b"value", 60.0),
        store.kv.compare_and_set("key", b"value", b"other", 60.0),
        store.log.append("stream", b"entry", ttl=60.0, max_entries=10),
        store.log.read("stream", None),
        store.log.newest("stream", 1),
        store.log.touch("stream", 60.0),
        store.bus.publish("topic", b"message"),
        store.kv.delete("key"),
        store.log.trim("stream"),
        store.close(),
    ]
    for step in steps:
        with pytest.raises(StopIteration):
            step.send(None)


def test_memory_store_methods_never_suspend() -> None:
    run_without_loop(MemoryStore())


def test_open_store_creates_a_separate_store() -> None:
    one, two = open_store("memory://"), open_store("memory://")
    assert one.shared is False
    assert one.epoch != two.epoch


@for_each("url", ["rudis://user:hunter2@host/0", "memory", "", "memory:/x", "memory://hunter2"])
def test_errors_for_unknown_store_urls_hide_the_password(url: str) -> None:
    with pytest.raises(LocalError, match="memory://") as error:
        open_store(url)
    assert "hunter2" not in str(error.value)


async def test_values_expire_exactly_on_time(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for key in ["get", "delete", "keys", "cas"]:
        await store.kv.put(key, b"value", 10.0)
    clock.now += 9.9
    assert await store.kv.get("get") == b"value"
    clock.now += 0.1
    assert await store.kv.keys("") == []
    assert await store.kv.delete("delete") is False
    assert await store.kv.compare_and_set("cas", b"value", b"new", 10.0) is False
    assert await store.kv.compare_and_set("cas", None, b"new", 10.0) is True
    assert await store.kv.get("get") is None
    assert await store.kv.keys("") == ["cas"]


async def test_put_restarts_the_time_to_live(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    await store.kv.put("longer", b"", 10.0)
    await store.kv.put("longer", b"", 30.0)
    await store.kv.put("shorter", b"", 30.0)
    await store.kv.put("shorter", b"", 10.0)
    clock.now += 20.0
    assert await store.kv.keys("") == ["longer"]
    await store.kv.get("other")
    assert stored_bytes(store.kv) == len("longer") + ITEM_BYTES
    assert await store.kv.get("longer") == b""
    clock.now += 10.0
    assert await store.kv.get("longer") is None
    assert stored_bytes(store.kv) == 0


async def test_streams_expire_after_their_last_append(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    first = await append(store, "stream", b"a", ttl=10.0)
    clock.now += 9.0
    await append(store, "stream", b"b", ttl=10.0)
    clock.now += 9.0
    assert [entry.data for entry in await store.log.read("stream", first)] == [b"b"]
    clock.now += 1.0
    assert await store.log.read("stream", None) == []
    with pytest.raises(Gap):
        await store.log.read("stream", first)


async def test_touch_restarts_the_time_to_live(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    first = await append(store, "call:stream", b"a", ttl=10.0)
    for _ in range(5):
        clock.now += 9.0
        assert await store.log.touch("call:stream", 10.0)
    assert await store.log.read("call:stream", first) == []
    clock.now += 10.0
    assert not await store.log.touch("call:stream", 10.0)
    with pytest.raises(Gap):
        await store.log.read("call:stream", first)


async def test_expired_streams_continue_above_old_positions(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    old = await append(store, "stream", ttl=10.0)
    await append(store, "stream", ttl=10.0)
    clock.now += 10.0
    new = await append(store, "stream", b"new")
    assert new.offset > old.offset
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", old)
    assert gap.value.oldest == new


async def test_expired_items_are_swept_incrementally(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for n in range(10 * SWEEP):
        await store.kv.put(f"key{n}", b"", 10.0)
        await append(store, f"stream{n}", ttl=10.0)
    clock.now += 10.0
    value_bytes, log_bytes = stored_bytes(store.kv), stored_bytes(store.log)
    await store.kv.get("other")
    await store.log.read("other", None)
    assert value_bytes * 0.89 < stored_bytes(store.kv) < value_bytes
    assert log_bytes * 0.89 < stored_bytes(store.log) < log_bytes
    for _ in range(10):
        await store.kv.get("other")
        await store.log.read("other", None)
    assert stored_bytes(store.kv) == stored_bytes(store.log) == 0


async def test_expired_items_are_absent_before_the_sweep(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for n in range(4 * SWEEP):
        await store.kv.put(f"{n}", b"", 10.0)
        await append(store, f"{n}", ttl=10.0)
    clock.now += 10.0
    assert await store.kv.get(f"{4 * SWEEP - 1}") is None
    assert await store.log.read(f"{4 * SWEEP - 1}", None) == []
    await append(store, f"{4 * SWEEP - 2}", b"new")
    assert len(await store.log.read(f"{4 * SWEEP - 2}", None)) == 1


async def test_full_map_rejects_new_values_and_keeps_existing_ones(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_value_bytes=10_000)
    await store.kv.put("key", b"old", 10.0)
    await store.kv.put("rest", bytes(8_400), 10.0)
    with pytest.raises(StoreFull):
        await store.kv.put("key", bytes(1_000), 10.0)
    with pytest.raises(StoreFull):
        await store.kv.compare_and_set("new", None, bytes(1_000), 10.0)
    assert await store.kv.get("key") == b"old"
    assert await store.kv.get("new") is None
    await store.kv.put("rest", b"", 10.0)
    await store.kv.put("key", bytes(1_000), 10.0)
    assert await store.kv.get("key") == bytes(1_000)


async def test_tombstones_fit_when_larger_values_do_not(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_value_bytes=10_000)
    await store.kv.put("record", bytes(8_900), 10.0)
    with pytest.raises(StoreFull):
        await store.kv.put("new", bytes(MARK_BYTES + 300), 10.0)
    await store.kv.put("tombstone", bytes(MARK_BYTES), 10.0)
    with pytest.raises(StoreFull):
        await store.kv.put("small", bytes(MARK_BYTES + 1), 10.0)
    await store.kv.put("second", bytes(MARK_BYTES), 10.0)
    await store.kv.put("third", bytes(MARK_BYTES), 10.0)
    await store.kv.put("fourth", bytes(MARK_BYTES), 10.0)
    with pytest.raises(StoreFull):
        await store.kv.put("fifth", bytes(MARK_BYTES), 10.0)
    assert stored_bytes(store.kv) <= 10_000


async def test_expired_values_do_not_count_toward_the_limit(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_value_bytes=100_000)
    for n in range(400):
        await store.kv.put(f"{n}", b"", 10.0)
    with pytest.raises(StoreFull):
        await store.kv.put("large", bytes(93_000), 10.0)
    clock.now += 10.0
    await store.kv.put("large", bytes(93_000), 10.0)
    assert await store.kv.keys("") == ["large"]


async def test_full_log_evicts_the_least_recent_stream(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=10_000)
    old = await append(store, "old", bytes(2_000))
    busy = await append(store, "busy", bytes(2_000))
    await append(store, "next", bytes(2_000))
    await append(store, "busy", b"again")
    await append(store, "new", bytes(3_000))
    with pytest.raises(Gap) as gap:
        await store.log.read("old", old)
    assert gap.value.oldest is None
    assert len(await store.log.read("next", None)) == 1
    await append(store, "more", bytes(2_000))
    assert await store.log.read("next", None) == []
    assert len(await store.log.read("busy", busy)) == 1
    assert stored_bytes(store.log) <= 10_000


async def test_full_kind_does_not_affect_other_kinds(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=10_000)
    await append(store, "mailbox:ada", bytes(8_000))
    for n in range(20):
        await append(store, f"call:{n}:a", bytes(3_000))
    assert len(await store.log.read("mailbox:ada", None)) == 1
    assert store.log.kinds["call"].size <= 10_000 < stored_bytes(store.log)


async def test_unused_kinds_release_their_space(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    await append(store, "call:1:a", bytes(3_000), ttl=10.0)
    clock.now += 10.0
    await append(store, "hub:journal", b"", ttl=10.0)
    assert store.log.kinds["call"].size == 0


async def test_log_without_streams_frees_their_table(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    for n in range(1_000):
        await append(store, f"stream{n}", b"")
    for n in range(1_000):
        await store.log.trim(f"stream{n}")
    assert sys.getsizeof(store.log._streams) == sys.getsizeof({})


async def test_single_large_stream_loses_its_oldest_entries(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=10_000)
    positions = [await append(store, "stream", bytes(1_000)) for _ in range(100)]
    held = await store.log.read("stream", None)
    assert [entry.position for entry in held] == positions[-len(held) :]
    assert len(held) == 7
    with pytest.raises(Gap):
        await store.log.read("stream", positions[0])
    assert stored_bytes(store.log) <= 10_000


async def test_full_log_trims_its_largest_stream(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=20_000)
    small = await append(store, "small", b"quiet")
    for _ in range(100):
        await append(store, "large", bytes(1_000))
        await append(store, "copy", bytes(100), max_entries=5)
    assert [entry.position for entry in await store.log.read("small", None)] == [small]
    assert len(await store.log.read("copy", None)) == 5
    assert len(await store.log.read("large", None)) == 13
    assert stored_bytes(store.log) <= 20_000


async def test_copied_event_does_not_evict_its_original(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=20_000)
    for n in range(50):
        await append(store, f"other{n}", bytes(500))
    for n in range(50):
        await append(store, "first", b"%d" % n + bytes(8_000))
        await append(store, f"copy{n % 3}", bytes(8_000))
        assert (await store.log.read("first", None))[-1].data == b"%d" % n + bytes(8_000)
        assert stored_bytes(store.log) <= 20_000


async def test_newer_of_two_large_entries_stays(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=20_000)
    await append(store, "first", bytes(12_000))
    await append(store, "second", bytes(12_000))
    assert await store.log.read("first", None) == []
    assert len(await store.log.read("second", None)) == 1
    assert stored_bytes(store.log) <= 20_000


async def test_eviction_is_independent_of_size_order(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_log_bytes=30_000)
    for n in range(1_000):
        await append(store, f"s{n * 7 % 13}", bytes(n * 37 % 3_000), max_entries=1 + n % 9, ttl=50.0)
        if n % 11 == 0:
            await store.log.trim(f"s{n % 13}")
        clock.now += n % 5
        assert stored_bytes(store.log) <= 30_000
    for n in range(13):
        await store.log.trim(f"s{n}")
    assert stored_bytes(store.log) == 0


async def test_oversized_entries_are_rejected_without_eviction() -> None:
    store = MemoryStore(max_log_bytes=10_000)
    await append(store, "stream", b"a")
    with pytest.raises(StoreFull):
        await append(store, "stream", bytes(10_000))
    assert len(await store.log.read("stream", None)) == 1


async def test_long_streams_are_trimmed_exactly() -> None:
    store = MemoryStore()
    positions = [await append(store, "stream", b"%d" % n, max_entries=300) for n in range(2_000)]
    assert [entry.position for entry in await store.log.read("stream", None)] == positions[-300:]
    positions.append(await append(store, "stream", b"last", max_entries=2))
    assert [entry.position for entry in await store.log.read("stream", None)] == positions[-2:]
    assert [entry.data for entry in await store.log.read("stream", positions[-2])] == [b"last"]


@pytest.mark.many
async def test_deadlines_for_removed_items_do_not_accumulate(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(5_000):
        await store.kv.put(f"key{n}", b"value", 86_400.0)
        await store.kv.delete(f"key{n}")
        await append(store, f"stream{n}", b"value", ttl=86_400.0)
        await store.log.trim(f"stream{n}")
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 64 * 1024


@pytest.mark.many
@for_each("end", ["delete", "expire"])
async def test_memory_is_released_when_items_are_removed(clock: Clock, end: str) -> None:
    store = MemoryStore(clock=clock)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for n in range(5_000):
        await store.kv.put(f"key{n}", b"value", 60.0)
        await append(store, f"stream{n}", b"value", ttl=60.0)
        store.bus.subscribe(f"topic{n}", lambda _data: None)()
    full = tracemalloc.get_traced_memory()[0]
    clock.now += 60.0 if end == "expire" else 0.0
    for n in range(5_000):
        await store.kv.delete(f"key{n}")
        await store.log.trim(f"stream{n}")
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert full - before > 1024 * 1024
    assert after - before < 256 * 1024  # the interpreter keeps 2,000 free tuples for itself: 112 KiB
    assert stored_bytes(store.kv) == stored_bytes(store.log) == 0


async def test_listing_one_kind_does_not_scan_others() -> None:
    store = MemoryStore()
    for number in range(1000):
        await store.kv.put(f"debt:{number}", b"", 60.0)
    await store.kv.put("presence:chat ann", b"", 60.0)
    store.kv.kinds["debt"].values = None  # type: ignore[assignment]  # whoever walks over it fails
    assert await store.kv.keys("presence:chat ") == ["presence:chat ann"]
