import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backend_stores import MemoryStore
from cases import for_each
from millstream import _troubles
from millstream._protocol.errors import LocalError
from millstream._stores import tail
from millstream._stores.base import Entry, Gap, Position, StoreUnavailable
from millstream._stores.tail import Tail
from millstream._troubles import Troubles
from patience import WAIT

STREAM = "call:one"


class Reader:
    """A tail with its delivered entries and reported losses."""

    def __init__(self, store: Any, after: Position | None = None, **options: Any) -> None:
        self.got: list[bytes] = []
        self.told: list[Gap] = []
        self._more = asyncio.Event()
        self.tail = Tail(store.log, Troubles(), STREAM, after, self.take, self.lose, **options)

    def take(self, entries: Sequence[Entry]) -> None:
        self.got += [entry.data for entry in entries]
        self._more.set()

    def lose(self, gap: Gap) -> None:
        self.told.append(gap)
        self.got.append(b"gap")

    async def until(self, data: bytes) -> list[bytes]:
        """Return all entries once `data` is among them."""
        async with asyncio.timeout(WAIT):
            while data not in self.got:
                self._more.clear()
                await self._more.wait()
        return self.got


class Parts:
    """A log whose pushes are delivered by the test, in any order and number."""

    def __init__(self) -> None:
        self.memory = MemoryStore(epoch="here").log
        self.sent: list[Entry] = []
        self.hear: Callable[[Entry], None] = lambda entry: None
        self.interrupted: Callable[[], None] = lambda: None
        self.reads = 0
        self.reads_before_listening = 0
        self.log: Any = self

    async def append(self, stream: str, data: bytes, *, ttl: float, max_entries: int) -> Position:
        position = await self.memory.append(stream, data, ttl=ttl, max_entries=max_entries)
        self.sent.append(Entry(position, data))
        return position

    async def read(self, stream: str, after: Position | None, limit: int = 1000, max_bytes: int = 10**6) -> Any:
        self.reads += 1
        return await self.memory.read(stream, after, limit, max_bytes)

    async def trim(self, stream: str) -> None:
        await self.memory.trim(stream)

    def listen(
        self,
        stream: str,
        heard: Callable[[Entry], None],
        *,
        interrupted: Callable[[], None] | None = None,
        topic: str | None,
    ) -> Any:
        if interrupted is not None:
            self.hear, self.interrupted = heard, interrupted
        return lambda: None

    async def wait_until_listening(self, stream: str) -> None:
        """Return immediately."""
        self.reads_before_listening = self.reads


async def append(store: Any, *data: bytes, max_entries: int = 100) -> list[Position]:
    return [await store.log.append(STREAM, each, ttl=60.0, max_entries=max_entries) for each in data]


@asynccontextmanager
async def run_tail(reader: Reader) -> AsyncIterator[None]:
    """Run the tail inside the block."""
    task = asyncio.create_task(reader.tail.run())
    try:
        yield
    finally:
        reader.tail.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_followers_start_with_existing_entries() -> None:
    store = MemoryStore()
    first, *_ = await append(store, b"1", b"2", b"3")
    reader = Reader(store, first)
    await append(store, b"4")
    await reader.tail.catch_up()
    async with run_tail(reader):
        await append(store, b"5")
        assert await reader.until(b"5") == [b"2", b"3", b"4", b"5"]


@for_each("seed", range(20))
async def test_each_event_arrives_once_despite_late_and_duplicate_pushes(seed: int) -> None:
    dice = random.Random(seed)
    store = Parts()
    reader = Reader(store)
    expected = [b"%d" % number for number in range(60)]
    async with run_tail(reader):
        for data in expected:
            await append(store, data)
            chance = dice.random()
            if chance < 0.3:
                for message in store.sent:
                    for _ in range(dice.randrange(1, 3)):
                        store.hear(message)
                store.sent.clear()
            elif chance < 0.5:
                store.sent.clear()
                store.interrupted()
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
        await append(store, b"last")
        store.interrupted()
        assert await reader.until(b"last") == [*expected, b"last"]
    assert reader.told == []


async def test_followers_reread_after_an_interruption() -> None:
    store = Parts()
    reader = Reader(store)
    async with run_tail(reader):
        await append(store, b"1", b"2")
        store.interrupted()
        assert await reader.until(b"2") == [b"1", b"2"]


async def test_current_followers_need_no_read() -> None:
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0])
    await reader.tail.catch_up()
    reads = store.reads
    await append(store, b"2", b"3")
    for entry in store.sent[1:]:
        store.hear(entry)
    store.hear(store.sent[1])
    assert (reader.got, store.reads) == ([b"2", b"3"], reads)
    store.hear(Entry(Position("here", 99), b"4"))
    assert (reader.got[-1], store.reads) == (b"4", reads)


async def test_followers_that_wait_at_the_same_time_share_reads() -> None:
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0])
    together = [asyncio.create_task(reader.tail.settle()) for _ in range(50)]
    await asyncio.sleep(0)
    await append(store, b"2")
    late = [asyncio.create_task(reader.tail.settle()) for _ in range(50)]
    together[0].cancel()
    await asyncio.gather(*together[1:])
    await asyncio.gather(*late)
    assert reader.got == [b"2"]
    assert store.reads <= 4


async def test_interrupted_followers_read_after_a_new_topic_is_pushed() -> None:
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0], topic="")
    await reader.tail.catch_up()
    store.interrupted()
    reads = store.reads
    reader.tail.follow("a")
    await reader.tail.settle()
    assert store.reads_before_listening == reads < store.reads


async def test_failed_read_fails_only_callers_that_waited_for_it() -> None:
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0])
    read, failures = store.read, [StoreUnavailable("No answer.")]

    async def fail_once(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await read(*args)

    store.read = fail_once  # type: ignore[method-assign]
    first = asyncio.create_task(reader.tail.settle())
    await asyncio.sleep(0)
    await append(store, b"2")
    await asyncio.gather(reader.tail.settle(), return_exceptions=True)
    with pytest.raises(StoreUnavailable):
        await first
    await reader.tail.settle()
    assert reader.got == [b"2"]


async def test_following_writers_continue_after_their_own_entry() -> None:
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0])
    await reader.tail.catch_up()
    reads = store.reads
    (own,) = await append(store, b"2")
    waiting = asyncio.create_task(reader.tail.reach(own))
    await asyncio.sleep(0)
    assert not waiting.done()
    store.hear(store.sent[-1])
    await waiting
    await reader.tail.reach(own)
    assert (reader.got, store.reads) == ([b"2"], reads)


async def test_writers_read_their_own_unpushed_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "PATIENCE", 0)
    store = Parts()
    reader = Reader(store, (await append(store, b"1"))[0])
    (own,) = await append(store, b"2")
    await reader.tail.reach(own)
    assert reader.got == [b"2"]


async def test_entries_dropped_before_reading_are_reported_as_a_gap() -> None:
    store = MemoryStore()
    (first,) = await append(store, b"0")
    await append(store, *(b"%d" % number for number in range(1, 9)), max_entries=3)
    reader = Reader(store, first)
    await reader.tail.catch_up()
    assert reader.got == [b"gap", b"6", b"7", b"8"]


async def test_recreated_streams_are_reported_as_a_gap() -> None:
    store = MemoryStore()
    reader = Reader(store, (await append(store, b"1"))[0])
    async with run_tail(reader):
        await store.log.trim(STREAM)
        await append(store, b"2")
        assert await reader.until(b"2") == [b"gap", b"2"]


async def test_new_epoch_causes_a_gap_followed_by_new_entries() -> None:
    store = Parts()
    reader = Reader(store, Position("older", 1))
    async with run_tail(reader):
        await append(store, b"1", b"2")
        store.hear(store.sent[-1])
        await append(store, b"3")
        store.hear(store.sent[-1])
        assert await reader.until(b"3") == [b"gap", b"2", b"3"]
    assert [gap.epoch for gap in reader.told] == ["here"]


async def test_readers_beyond_the_end_continue_with_the_next_entry() -> None:
    store = Parts()
    await append(store, b"1", b"2")
    reader = Reader(store, Position("here", 9))
    await reader.tail.catch_up()
    async with run_tail(reader):
        await append(store, b"3")
        store.hear(store.sent[-1])
        await reader.until(b"3")
    assert reader.got == [b"gap", b"3"]


async def test_followers_wait_for_room_after_each_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_PAGE", 2)
    store = MemoryStore()
    await append(store, *(b"%d" % number for number in range(5)))
    sizes: list[int] = []

    async def drain() -> None:
        sizes.append(len(reader.got))

    reader = Reader(store, drain=drain)
    await reader.tail.catch_up()
    assert sizes == [1, 2, 3, 4, 5]


async def test_failing_reads_are_retried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(_troubles, "PAUSE", 0)
    store = Parts()
    reader = Reader(store)
    read, failures = store.read, 0

    async def failing(*args: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise LocalError("The store cannot be reached.")
        return await read(*args)

    store.read = failing
    async with run_tail(reader):
        with caplog.at_level(logging.CRITICAL, "millstream"):
            await append(store, b"1")
            store.hear(store.sent[-1])
            assert await reader.until(b"1") == [b"1"]
    assert failures >= 3
