import pytest

from millstream.stores import MARK_BYTES, OwnerQuotaExceeded
from patience import Clock
from store_parts import MemoryStore


@pytest.fixture
def clock() -> Clock:
    """The clock of the store."""
    return Clock()


async def test_expired_values_release_their_share(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_value_bytes=10_000)
    for number in range(4):
        await store.kv.put(f"session:~a.{number}", bytes(1_000), 10.0)
    with pytest.raises(OwnerQuotaExceeded):
        await store.kv.put("session:~a.more", bytes(1_000), 10.0)
    clock.now += 11.0
    for number in range(4):
        await store.kv.put(f"session:~a.{number}{number}", bytes(1_000), 10.0)
    kind = store.kv.kinds["session"]
    assert kind.shares == {"~a": kind.size}
    for number in range(4):
        await store.kv.delete(f"session:~a.{number}{number}")
    assert not kind.shares


async def test_full_store_accepts_values_that_do_not_grow(clock: Clock) -> None:
    store = MemoryStore(clock=clock, max_value_bytes=10_000)
    await store.kv.put("record", bytes(8_900), 10.0)
    for number in range(3):
        await store.kv.put(f"mark {number}", bytes(MARK_BYTES), 10.0)
    await store.kv.put("record", b"x" * 8_900, 10.0)
    assert await store.kv.compare_and_set("record", b"x" * 8_900, b"y" * 8_899, 10.0)
