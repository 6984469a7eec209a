import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from backend_stores import MemoryStore
from hub_parts import PRESENCE, Clients, announced
from millstream._protocol.errors import LocalError
from millstream._stores.base import (
    Entry,
    EntryRepeated,
    Gap,
    Index,
    OwnerQuotaExceeded,
    Position,
    StoreFull,
    StreamSealed,
)
from millstream._stores.rates import (
    MARK_BYTES,
    SLOT_WAIT,
    Charge,
    ConcurrencySlot,
    Quota,
    RateCharge,
    owner_for,
    share_for,
)
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream._troubles import Troubles
from patience import WAIT
from property_settings import examples
from store_parts import (
    BACKINGS,
    TTL,
    Backing,
    MessageRecorder,
    TailReader,
    append,
    backings,
    data_of,
    read_all,
    until_workers,
)

# Values and messages


async def test_epoch_is_short_visible_ascii(store: Store) -> None:
    assert 1 <= len(store.epoch) <= 16
    assert all("!" <= char <= "~" for char in store.epoch)


async def test_stored_data_survives_close_and_open(store: Store) -> None:
    await store.kv.put("key", b"value", TTL)
    (first,) = await append(store, "stream", b"a")
    epoch = store.epoch
    await store.close()
    await store.close()
    await store.open()
    assert store.epoch == epoch
    assert await store.kv.get("key") == b"value"
    assert await store.log.read("stream", first) == []


async def test_store_can_be_opened_again_after_its_lease_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.close()
    with monkeypatch.context() as patch:
        patch.setattr(store.workers, "open", AsyncMock(side_effect=LocalError("There is no room.")))
        with pytest.raises(LocalError, match=r"^There is no room\.$"):
            await store.open()
    await store.open()
    await store.kv.put("key", b"value", TTL)
    assert await store.kv.get("key") == b"value"


# key-value


async def test_absent_keys_are_none_and_empty_values_are_not(store: Store) -> None:
    assert await store.kv.get("key") is None
    await store.kv.put("key", b"", TTL)
    assert await store.kv.get("key") == b""


async def test_put_replaces_arbitrary_bytes(store: Store) -> None:
    value = bytes(range(256)) * 100
    await store.kv.put("key", b"old", TTL)
    await store.kv.put("key", value, TTL)
    assert await store.kv.get("key") == value


async def test_delete_returns_whether_the_key_existed(store: Store) -> None:
    await store.kv.put("key", b"value", TTL)
    assert await store.kv.delete("key") is True
    assert await store.kv.get("key") is None
    assert await store.kv.delete("key") is False


async def test_compare_and_set_requires_the_expected_value(store: Store) -> None:
    cases = product([None, b"", b"one", b"two"], [None, b"", b"one"], [None, b"", b"new"])
    for number, (present, expected, value) in enumerate(cases):
        key = f"key {number}"
        if present is not None:
            await store.kv.put(key, present, TTL)
        done = await store.kv.compare_and_set(key, expected, value, TTL)
        assert done is (present == expected), (present, expected, value)
        assert await store.kv.get(key) == (value if done else present), (present, expected, value)


async def test_only_one_of_many_concurrent_compare_and_sets_succeeds(store: Store) -> None:
    tries = [store.kv.compare_and_set("lease", None, b"%d" % n, TTL) for n in range(20)]
    won = await asyncio.gather(*tries)
    assert sum(won) == 1
    assert await store.kv.get("lease") == b"%d" % won.index(True)


async def test_key_prefixes_are_literal(store: Store) -> None:
    names = ["s:1", "s:2", "s", "t:1", "s*", "s?x", "s[1]", "s%", "s_", "S:3", "sé"]
    for name in names:
        await store.kv.put(name, b"", TTL)
    await store.kv.delete("s:2")
    names.remove("s:2")
    for prefix in ["", "s", "s:", "s*", "s?", "s[", "s%", "s_", "sé", "nothing"]:
        found = [name for name in await store.kv.keys(prefix) if not name.startswith("roster:")]
        assert sorted(found) == sorted(name for name in names if name.startswith(prefix))


@pytest.mark.many
async def test_key_kinds_have_separate_quotas(store: Store) -> None:
    piece = bytes(2**20)
    with suppress(StoreFull):
        for number in range(200):
            await store.kv.put(f"debt:{number}", piece, TTL)
    await store.kv.put("session:ada", piece, TTL)
    assert await store.kv.compare_and_set("once:ada", None, piece, TTL)
    assert await store.kv.get("debt:0") == await store.kv.get("session:ada") == piece


@pytest.mark.many
async def test_lossy_values_evict_the_oldest(store: Store) -> None:
    piece = bytes(2**20)
    await store.kv.put("debt:0", piece, TTL, lossy=True)
    await store.kv.put("debt:1", piece, TTL, lossy=True)
    await store.kv.put("debt:0", piece, TTL, lossy=True)
    number = 2
    while await store.kv.get("debt:1") is not None:
        assert await store.kv.compare_and_set(f"debt:{number}", None, piece, TTL, lossy=True)
        number += 1
        assert number < 200
    assert await store.kv.get("debt:0") == await store.kv.get(f"debt:{number - 1}") == piece
    with pytest.raises(StoreFull):
        await store.kv.put("debt:huge", bytes(200 * 2**20), TTL, lossy=True)
    assert await store.kv.get(f"debt:{number - 1}") == piece


@pytest.mark.many
async def test_shares_limit_one_owners_space(store: Store) -> None:
    kv, piece = store.kv, bytes(2**20)
    number = 0
    with suppress(OwnerQuotaExceeded):
        while number < 200:
            await kv.put(f"session:~greedy.{number}", piece, TTL)
            number += 1
    assert 4 < number < 200
    with pytest.raises(OwnerQuotaExceeded):
        await kv.compare_and_set("session:~greedy.new", None, piece, TTL)
    with pytest.raises(OwnerQuotaExceeded):
        await kv.put("session:~greedy.0", bytes(2**21), TTL)
    # What doesn't grow is never refused, nor is a mark.
    await kv.put("session:~greedy.0", bytes(2**20), TTL)
    assert await kv.compare_and_set("session:~greedy.0", piece, b"x" * 2**20, TTL)
    await kv.put("session:~greedy.mark", bytes(MARK_BYTES), TTL)
    # Others have room, and so have those who belong to no share.
    for other in ("~modest.0", "~modest.1", "unshared"):
        assert await kv.compare_and_set(f"session:{other}", None, piece, TTL)
    # What ends gives its room back.
    assert await kv.delete("session:~greedy.1")
    await kv.put("session:~greedy.new", piece, TTL)
    with pytest.raises(OwnerQuotaExceeded):
        await kv.put("session:~greedy.newer", piece, TTL)
    await kv.put("session:~greedy.2", bytes(MARK_BYTES), TTL)
    await kv.put("session:~greedy.newer", piece[:-MARK_BYTES], TTL)


@pytest.mark.many
async def test_keys_for_small_values_count_toward_their_owners_share(store: Store) -> None:
    number = 0
    with suppress(OwnerQuotaExceeded):
        while number < 200:
            await store.kv.put(f"session:~greedy.{number}", bytes(2**20), TTL)
            number += 1
    marks = 0
    with suppress(OwnerQuotaExceeded):
        while marks < 5_000:
            await store.kv.put(f"session:~greedy.{'k' * 2_000}{marks}", b"1", TTL)
            marks += 1
    assert 100 < marks < 5_000
    with pytest.raises(OwnerQuotaExceeded):
        await store.kv.compare_and_set(f"session:~greedy.{'k' * 2_000}", None, b"1", TTL)
    await store.kv.put("session:~greedy.0", b"1", TTL)  # it doesn't grow
    await store.kv.put("session:~modest.0", bytes(2**20), TTL)
    await store.kv.put("session:~modest.1", b"1", TTL)


@pytest.mark.many
async def test_full_share_in_one_slot_does_not_affect_other_owners(store: Store) -> None:
    number = 0
    with suppress(OwnerQuotaExceeded):
        while number < 200:
            await store.kv.put(f"task:~greedy.{number}", bytes(2**20), TTL)
            number += 1
    assert 4 < number < 200
    await store.kv.put("task:~modest.0", bytes(2**20), TTL)


@pytest.mark.many
async def test_lossy_values_in_a_full_share_evict_the_oldest(store: Store) -> None:
    kv, piece = store.kv, bytes(2**20)
    for share in ("modest", "greedy"):
        await kv.put(f"result:~{share}.0", piece, TTL, lossy=True)
    number = 0
    while await kv.get("result:~greedy.0") is not None:
        number += 1
        assert await kv.compare_and_set(f"result:~greedy.{number}", None, piece, TTL, lossy=True)
        assert number < 200
    assert number > 4
    assert await kv.get("result:~modest.0") == await kv.get(f"result:~greedy.{number}") == piece
    for _ in range(number):  # their room is free for others
        await kv.put("result:~modest.1", piece, TTL, lossy=True)
    assert await kv.get(f"result:~greedy.{number}") == await kv.get("result:~modest.0") == piece
    with pytest.raises(StoreFull):
        await kv.put("result:~greedy.huge", bytes(200 * 2**20), TTL, lossy=True)
    assert await kv.get(f"result:~greedy.{number}") == piece


@pytest.mark.many
async def test_owners_have_shares_in_undeclared_kinds(store: Store) -> None:
    alice, bob = (f"com.example/cart:{share_for(owner)}." for owner in ("alice", "bob"))
    number = 0
    with suppress(OwnerQuotaExceeded):
        while number < 200:
            await store.kv.put(f"{alice}{number}", bytes(2**20), TTL)
            number += 1
    assert 4 < number < 200
    await store.kv.put(f"{bob}0", bytes(2**20), TTL)
    assert await store.kv.compare_and_set(f"{bob}1", None, bytes(2**20), TTL)
    with pytest.raises(OwnerQuotaExceeded):
        await store.kv.put(f"{alice}more", bytes(2**20), TTL)


async def test_keys_contain_their_share_after_a_separator() -> None:
    keys = ("session:~a.b", "other:~a.b.c", "other:a.b", "session:~a", "session:~.b", "~a.b", "session", "x:b~a.c")
    assert [owner_for(key) for key in keys] == ["~a", "~a", "", "", "", "", "", ""]
    assert owner_for(f"com.example/cart:{share_for('ada')}.1") == owner_for(f"x:{share_for('ada')}.2") != ""


async def test_values_are_returned_in_request_order(store: Store) -> None:
    await store.kv.put("s:1", b"one", TTL)
    await store.kv.put("t:2", b"", TTL)
    assert await store.kv.get_many(["t:2", "s:3", "s:1", "t:2"]) == [b"", None, b"one", b""]
    assert await store.kv.get_many([]) == []


# bus


async def test_topic_subscribers_receive_messages_in_order(store: Store) -> None:
    one, two, other = MessageRecorder(), MessageRecorder(), MessageRecorder()
    store.bus.subscribe("topic", one)
    store.bus.subscribe("topic", two)
    store.bus.subscribe("other", other)
    sent = [b"%d" % n for n in range(50)]
    for item in sent:
        await store.bus.publish("topic", item)
    await store.bus.publish("other", b"end")
    await one.until(sent[-1])
    await two.until(sent[-1])
    await other.until(b"end")
    assert one.items == two.items == sent
    assert other.items == [b"end"]


async def test_unsubscribe_stops_delivery_and_is_idempotent(store: Store) -> None:
    gone, stays = MessageRecorder(), MessageRecorder()
    stop = store.bus.subscribe("topic", gone)
    stop_same = store.bus.subscribe("topic", gone)
    store.bus.subscribe("topic", stays)
    stop()
    stop()
    await store.bus.publish("topic", b"once")
    await stays.until(b"once")
    assert gone.items == [b"once"]
    stop_same()
    await store.bus.publish("topic", b"end")
    await stays.until(b"end")
    assert gone.items == [b"once"]


async def test_receivers_can_unsubscribe_each_other(store: Store) -> None:
    late, end = MessageRecorder(), MessageRecorder()
    store.bus.subscribe("topic", lambda _data: stop_late())
    stop_late = store.bus.subscribe("topic", late)
    store.bus.subscribe("topic", end)
    await store.bus.publish("topic", b"end")
    await end.until(b"end")
    assert late.items == []


async def test_close_ends_subscriptions(store: Store) -> None:
    inbox, end = MessageRecorder(), MessageRecorder()
    stop = store.bus.subscribe("topic", inbox)
    await store.close()
    await store.open()
    stop()
    store.bus.subscribe("topic", end)
    await store.bus.publish("topic", b"end")
    await end.until(b"end")
    assert inbox.items == []


# Streams


async def test_entries_are_read_in_the_order_in_which_they_were_appended(store: Store) -> None:
    positions = await append(store, "stream", b"a", b"", b"c")
    assert await store.log.read("stream", None) == [
        Entry(position, data) for position, data in zip(positions, [b"a", b"", b"c"], strict=True)
    ]
    assert all(position.epoch == store.epoch for position in positions)
    first = positions[0].offset
    assert 1 <= first < positions[1].offset < positions[2].offset < 2**62


async def test_reads_continue_after_a_position(store: Store) -> None:
    positions = await append(store, "stream", b"a", b"b", b"c")
    assert data_of(await store.log.read("stream", positions[0])) == [b"b", b"c"]
    assert data_of(await store.log.read("stream", positions[0], 1)) == [b"b"]
    assert data_of(await store.log.read("stream", None, 2)) == [b"a", b"b"]
    assert data_of(await store.log.read("stream", positions[-1])) == []


async def test_offsets_increase_independently_of_other_streams(store: Store) -> None:
    one: list[Position] = []
    for _ in range(5):
        one += await append(store, "hub:one", b"", b"")
        await append(store, "hub:two", b"")
    offsets = [position.offset for position in one]
    assert offsets == sorted(set(offsets))
    assert [entry.position for entry in await store.log.read("hub:one", None)] == one
    for number, position in enumerate(one):
        assert [entry.position for entry in await store.log.read("hub:one", position)] == one[number + 1 :]


async def test_position_between_entries_reads_the_next(store: Store) -> None:
    positions = await append(store, "stream", b"a", b"b", b"c")
    assert data_of(await store.log.read("stream", Position(store.epoch, positions[1].offset - 1))) == [b"b", b"c"]


async def test_reads_are_bounded_in_bytes(store: Store) -> None:
    positions = await append(store, "stream", *[bytes(1000)] * 10)
    page = await store.log.read("stream", positions[0], max_bytes=2500)
    assert [entry.position for entry in page] == positions[1:4]
    assert len(await store.log.read("stream", None, max_bytes=1)) == 1
    assert len(await store.log.read("stream", None, max_bytes=2000)) == 2
    assert len(await store.log.read("stream", positions[7], max_bytes=2500)) == 2
    assert len(await store.log.read("stream", positions[4], 2, 2500)) == 2
    assert [entry.position for entry in await read_all(store, "stream", 2500)] == positions


async def test_newest_entries_can_be_read_alone(store: Store) -> None:
    assert await store.log.newest("stream", 5) == []
    positions = await append(store, "stream", *(b"%d" % n for n in range(10)))
    assert data_of(await store.log.newest("stream", 3)) == [b"7", b"8", b"9"]
    assert [entry.position for entry in await store.log.newest("stream", 99)] == positions
    await append(store, "large", *[bytes(1000)] * 9, b"last")
    assert data_of(await store.log.newest("large", 99, 1500)) == [bytes(1000), bytes(1000), b"last"]
    assert data_of(await store.log.newest("large", 2, 10_000)) == [bytes(1000), b"last"]
    assert data_of(await store.log.newest("large", 99, 1)) == [b"last"]
    await append(store, "stream", b"x", max_entries=1)
    assert data_of(await store.log.newest("stream", 99))[-1] == b"x"


async def test_gap_contains_the_newest_position(store: Store) -> None:
    positions = await append(store, "stream", *(b"%d" % n for n in range(500)), max_entries=3)
    ahead = Position(store.epoch, positions[-1].offset + 7)
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", ahead)
    assert gap.value.newest == positions[-1] == gap.value.resume_from(ahead)
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", positions[0])
    assert gap.value.newest == positions[-1]
    assert gap.value.resume_from(positions[0]) is None, "behind the oldest, everything that is left is new"
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", Position("another", positions[-1].offset + 7))
    assert gap.value.resume_from(Position("another", positions[-1].offset + 7)) is None


async def test_touch_returns_whether_the_stream_exists(store: Store) -> None:
    assert await store.log.touch("call:stream", TTL) is False
    (position,) = await append(store, "call:stream", b"a")
    assert await store.log.touch("call:stream", TTL) is True
    assert await store.log.read("call:stream", position) == []
    await store.log.trim("call:stream")
    assert await store.log.touch("call:stream", TTL) is False


async def test_streams_are_separate(store: Store) -> None:
    for n in range(3):
        await append(store, "one", b"1%d" % n)
        await append(store, "two", b"2%d" % n)
    assert data_of(await store.log.read("one", None)) == [b"10", b"11", b"12"]
    assert data_of(await store.log.read("two", None)) == [b"20", b"21", b"22"]


async def test_reading_an_unknown_stream_returns_nothing_or_raises_a_gap(store: Store) -> None:
    assert await store.log.read("nothing", None) == []
    with pytest.raises(Gap) as gap:
        await store.log.read("nothing", Position(store.epoch, 1))
    assert gap.value.epoch == store.epoch
    assert gap.value.oldest is None


async def test_position_from_another_epoch_is_reported_as_a_gap(store: Store) -> None:
    positions = await append(store, "stream", b"a", b"b")
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", Position("another", positions[0].offset))
    assert gap.value.epoch == store.epoch
    assert gap.value.oldest == positions[0]


async def test_position_beyond_the_newest_entry_is_reported_as_a_gap(store: Store) -> None:
    (position,) = await append(store, "stream", b"a")
    with pytest.raises(Gap):
        await store.log.read("stream", Position(store.epoch, position.offset + 1))


async def test_dropped_entries_are_reported_as_a_gap(store: Store) -> None:
    positions = await append(store, "stream", *(b"%d" % n for n in range(500)), max_entries=3)
    held = data_of(await store.log.read("stream", None))
    assert held == [b"%d" % n for n in range(500 - len(held), 500)]
    assert 3 <= len(held) < 500
    assert data_of(await store.log.read("stream", positions[-3])) == [b"498", b"499"]
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", positions[0])
    assert gap.value.oldest == positions[-len(held)]
    assert data_of(await store.log.read("stream", gap.value.oldest)) == held[1:]


@pytest.mark.many
async def test_stream_kinds_have_separate_quotas(store: Store) -> None:
    piece = bytes(2**20)
    kept = await append(store, "mailbox:ada", *[piece] * 40)
    for n in range(40):
        await append(store, f"call:{n}:a", piece)
    assert [entry.position for entry in await read_all(store, "mailbox:ada")] == kept


async def test_trimmed_streams_never_reuse_positions(store: Store) -> None:
    old = await append(store, "stream", b"a", b"b", b"c")
    await store.log.trim("stream")
    await store.log.trim("stream")
    assert await store.log.read("stream", None) == []
    for position in old:
        with pytest.raises(Gap):
            await store.log.read("stream", position)
    new = await append(store, "stream", b"d", b"e", b"f", b"g")
    assert min(position.offset for position in new) > max(position.offset for position in old)
    for position in old[:2]:
        with pytest.raises(Gap):
            await store.log.read("stream", position)
    assert data_of(await store.log.read("stream", None)) == [b"d", b"e", b"f", b"g"]


# Resuming after any cut. The model is a plain list of all that was ever appended.

STREAMS = st.sampled_from(["one", "two"])


class LogMachine(RuleBasedStateMachine):
    """Readers that stop anywhere and continue from any position lose and repeat nothing, except for reported gaps.

    What they cannot get they are told of by `Gap`, and a gap is only told when an entry is really gone.
    """

    make: Callable[[], Backing]

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.backing = self.make()
        self.store = self.runner.run(self.backing.worker())
        self.appended: dict[str, list[Entry]] = {"one": [], "two": []}
        self.kept_from: dict[str, int] = {"one": 0, "two": 0}
        """Index of the oldest entry that the log still has to hold."""
        self.begun: dict[str, int] = {"one": 0, "two": 0}
        """Index of the first entry since the last trim."""

    def teardown(self) -> None:
        self.runner.run(self.backing.close())
        self.runner.close()

    @rule(stream=STREAMS, data=st.binary(max_size=8), max_entries=st.integers(1, 6), times=st.integers(1, 4))
    def append(self, stream: str, data: bytes, max_entries: int, times: int) -> None:
        async def append() -> list[Position]:
            put = self.store.log.append
            return [await put(stream, data, ttl=TTL, max_entries=max_entries) for _ in range(times)]

        for position in self.runner.run(append()):
            self.appended[stream].append(Entry(position, data))
            oldest = len(self.appended[stream]) - max_entries
            self.kept_from[stream] = max(self.kept_from[stream], oldest)

    @rule(stream=STREAMS)
    def trim(self, stream: str) -> None:
        self.runner.run(self.store.log.trim(stream))
        self.kept_from[stream] = self.begun[stream] = len(self.appended[stream])

    @rule(stream=STREAMS, cut=st.integers(0, 30), limit=st.integers(1, 5))
    def resume(self, stream: str, cut: int, limit: int) -> None:
        entries = self.appended[stream]
        if not entries:
            return
        cut %= len(entries)
        try:
            got = self.runner.run(self.read_on(stream, entries[cut].position, limit))
        except Gap:
            got = None
        lost = cut + 1 < self.kept_from[stream] or cut < self.begun[stream]
        assert got == entries[cut + 1 :] or (got is None and lost)

    @rule(stream=STREAMS, limit=st.integers(1, 5))
    def start(self, stream: str, limit: int) -> None:
        got = self.runner.run(self.read_on(stream, None, limit))
        assert len(got) >= len(self.appended[stream]) - self.kept_from[stream]
        assert got == self.appended[stream][len(self.appended[stream]) - len(got) :]

    @invariant()
    def offsets_of_a_stream_only_grow(self) -> None:
        for entries in getattr(self, "appended", {}).values():
            offsets = [entry.position.offset for entry in entries]
            assert offsets == sorted(set(offsets))

    @invariant()
    def the_newest_are_the_end_of_what_was_appended(self) -> None:
        async def newest() -> dict[str, list[Entry]]:
            return {stream: await self.store.log.newest(stream, 3) for stream in self.appended}

        for stream, got in self.runner.run(newest()).items():
            entries = self.appended[stream]
            assert got == entries[len(entries) - len(got) :]
            assert len(got) >= min(3, len(entries) - self.kept_from[stream])

    async def read_on(self, stream: str, after: Position | None, limit: int) -> list[Entry]:
        """Read to the end in pages, like a connection that breaks after each page."""
        got: list[Entry] = []
        while piece := await self.store.log.read(stream, after, limit):
            assert len(piece) <= limit
            got += piece
            after = piece[-1].position
        return got


@pytest.mark.many
@pytest.mark.parametrize("name", backings(BACKINGS))
def test_resuming_after_any_interruption_delivers_each_event_once(name: str) -> None:
    machine = type("Machine", (LogMachine,), {"make": staticmethod(BACKINGS[name])})
    run_state_machine_as_test(machine, settings=settings(max_examples=examples(5), stateful_step_count=30))


# Appends: the index, the seal, and listeners


INDEX = Index("mailbox:news", TTL, 1000)


async def add(store: Store, data: bytes, stream: str = "hub:journal", **options: Any) -> Entry:
    position = await store.log.append(stream, data, ttl=TTL, max_entries=options.pop("max_entries", 1000), **options)
    return Entry(position, data)


# index


async def test_indexed_entries_share_one_position(store: Store) -> None:
    journal = [
        await add(store, b"other"),
        await add(store, b"a", index=INDEX),
        await add(store, b"other", index=Index("mailbox:else", TTL, 9)),
        await add(store, b"b", index=INDEX),
    ]
    assert await store.log.read("hub:journal", None) == journal
    history = [journal[1], journal[3]]
    assert await store.log.read(INDEX.stream, None) == history == await store.log.newest(INDEX.stream, 5)
    assert await store.log.read(INDEX.stream, history[0].position) == [history[1]]
    assert await store.log.newest(INDEX.stream, 1) == [history[1]]


@pytest.mark.many
async def test_indexes_keep_entries_dropped_from_the_stream(store: Store) -> None:
    kept = await add(store, b"kept", index=INDEX)
    for n in range(500):
        await add(store, b"%d" % n, max_entries=2)
    with pytest.raises(Gap):
        await store.log.read("hub:journal", kept.position)
    assert await store.log.read(INDEX.stream, None) == [kept]
    last = await add(store, b"last", index=INDEX)
    assert await store.log.read(INDEX.stream, kept.position) == [last]


@pytest.mark.many
async def test_indexes_have_their_own_length(store: Store) -> None:
    short = Index("mailbox:short", TTL, 3)
    entries = [await add(store, b"%d" % n, index=short) for n in range(500)]
    held = await store.log.read(short.stream, None)
    assert held == entries[500 - len(held) :]
    assert 3 <= len(held) < 500
    assert len(await read_all(store, "hub:journal")) == 500
    with pytest.raises(Gap):
        await store.log.read(short.stream, entries[0].position)


@pytest.mark.many
async def test_rejected_appends_leave_nothing_in_the_index(store: Store) -> None:
    await add(store, b"end", "hub:ended", seal=True)
    with pytest.raises(StreamSealed):
        await add(store, b"late", "hub:ended", index=INDEX)
    with pytest.raises(StoreFull):
        await add(store, bytes(200 * 2**20), index=INDEX)
    assert await store.log.read(INDEX.stream, None) == await store.log.read("hub:journal", None) == []


async def test_trimmed_indexes_continue_at_stream_positions(store: Store) -> None:
    old, lost = await add(store, b"old", index=INDEX), await add(store, b"lost", index=INDEX)
    await store.log.trim(INDEX.stream)
    assert await store.log.read(INDEX.stream, None) == []
    new = await add(store, b"new", index=INDEX)
    assert await store.log.read(INDEX.stream, None) == [new]
    with pytest.raises(Gap):
        await store.log.read(INDEX.stream, old.position)
    assert await store.log.read("hub:journal", None) == [old, lost, new]


# seal


async def test_sealed_streams_reject_appends(store: Store) -> None:
    first = await add(store, b"first", "call:1")
    end = await add(store, b"end", "call:1", seal=True)
    assert end.position.offset > first.position.offset
    for seal in (False, True):
        with pytest.raises(StreamSealed):
            await add(store, b"late", "call:1", seal=seal)
    assert await store.log.read("call:1", None) == [first, end]
    assert await store.log.read("call:1", end.position) == []
    assert await store.log.touch("call:1", TTL)
    await add(store, b"fine", "call:2")


async def test_only_one_of_many_concurrent_seals_succeeds(store: Store) -> None:
    tries = await asyncio.gather(
        *(add(store, b"%d" % n, "call:1", seal=True) for n in range(20)), return_exceptions=True
    )
    ends = [each for each in tries if isinstance(each, Entry)]
    assert [type(each) for each in tries if each not in ends] == [StreamSealed] * 19
    assert await store.log.read("call:1", None) == ends  # sealed with its first entry


async def test_deleted_streams_are_not_sealed(store: Store) -> None:
    await add(store, b"end", "call:1", seal=True)
    await store.log.trim("call:1")
    again = await add(store, b"again", "call:1")
    assert await store.log.read("call:1", None) == [again]


# hearing


async def test_entries_that_repeat_another_are_rejected(store: Store) -> None:
    async def once(stream: str, data: bytes, text: str) -> Position | None:
        try:
            return await store.log.append(stream, data, ttl=TTL, max_entries=100, once=text)
        except EntryRepeated:
            return None

    assert await once("hub:a", b"1", "one") is not None
    assert await once("hub:a", b"2", "one") is None
    assert await once("hub:a", b"3", "two") is not None
    assert await once("hub:b", b"4", "one") is not None
    assert all([await once("hub:a", b"5", ""), await once("hub:a", b"6", "")])
    assert data_of(await read_all(store, "hub:a")) == [b"1", b"3", b"5", b"6"]
    results = await asyncio.gather(*(once("hub:a", b"7", "new") for _ in range(20)))
    assert len([each for each in results if each is not None]) == 1
    assert data_of(await read_all(store, "hub:a"))[4:] == [b"7"]


async def test_followers_receive_entries_with_positions(store: Store) -> None:
    one, two, other = [
        await TailReader(store, stream).ready() for stream in ("hub:journal", "hub:journal", "hub:other")
    ]
    entries = [await add(store, b"%d" % n, index=INDEX) for n in range(50)]
    assert await one.until(entries[-1]) == entries
    assert await two.until(entries[-1]) == entries
    ended = await add(store, b"end", "hub:other", seal=True)
    assert await other.until(ended) == [ended]
    for each in (one, two, other):
        each.stop()


async def test_stopped_listeners_are_not_called(store: Store) -> None:
    gone, stays = asyncio.Event(), asyncio.Event()
    stop = store.log.listen("hub:journal", lambda _: gone.set(), interrupted=gone.set)
    store.log.listen("hub:journal", lambda _: stays.set(), interrupted=stays.set)
    await store.log.wait_until_listening("hub:journal")
    await add(store, b"first")
    async with asyncio.timeout(WAIT):
        await gone.wait()
        await stays.wait()
    stop()
    stop()
    gone.clear()
    stays.clear()
    await add(store, b"last")
    async with asyncio.timeout(WAIT):
        await stays.wait()
    assert not gone.is_set()


async def test_listening_can_restart(store: Store) -> None:
    for n in range(5):
        ear = await TailReader(store, "hub:journal").ready()
        entry = await add(store, b"%d" % n)
        assert (await ear.until(entry))[-1] == entry
        ear.stop()


async def test_rejected_entries_are_not_delivered(store: Store) -> None:
    ear = await TailReader(store, "call:1").ready()
    end = await add(store, b"end", "call:1", seal=True)
    await ear.until(end)
    with pytest.raises(StreamSealed):
        await add(store, b"late", "call:1")
    await store.log.trim("call:1")
    again = await add(store, b"again", "call:1")
    assert await ear.until(again) == [end, again]
    ear.stop()


async def test_close_ends_listening(store: Store) -> None:
    heard, after = asyncio.Event(), asyncio.Event()
    stop = store.log.listen("hub:journal", lambda _: heard.set(), interrupted=heard.set)
    await store.log.wait_until_listening("hub:journal")
    await store.close()
    await store.open()
    stop()
    heard.clear()
    store.log.listen("hub:journal", lambda _: after.set(), interrupted=after.set)
    await store.log.wait_until_listening("hub:journal")
    await append(store, "hub:journal", b"a")
    async with asyncio.timeout(WAIT):
        await after.wait()
    assert not heard.is_set()


# Presence, and the worker itself


async def test_first_join_and_last_leave_are_announced(store: Store) -> None:
    clients = Clients(store)
    for _ in range(2):
        await clients.join("chat", "ann", "Ann")
    await clients.join("chat", "bob")
    await clients.join("den", "ann")
    assert sorted(await clients.on("chat")) == ["Ann", "bob"]
    for _ in range(3):
        await clients.leave("chat", "ann")
    await clients.leave("nowhere", "ann")
    assert await clients.on("chat") == ["bob"]
    assert await clients.on("den") == ["ann"]
    assert await clients.on("nowhere") == []
    assert await announced(store) == ["join chat ann", "join chat bob", "join den ann", "leave chat ann"]


async def test_clients_can_return_under_a_new_name(store: Store) -> None:
    clients = Clients(store)
    for name in ("one", "two"):
        await clients.join("chat", "ann", name)
        assert await clients.on("chat") == [name]
        await clients.leave("chat", "ann")
    assert await announced(store) == ["join chat ann", "leave chat ann"] * 2


async def test_concurrent_joins_announce_once(store: Store) -> None:
    clients = Clients(store)
    await asyncio.gather(*(clients.join("chat", "ann") for _ in range(20)))
    await asyncio.gather(*(clients.leave("chat", "ann") for _ in range(20)))
    assert await announced(store) == ["join chat ann", "leave chat ann"]


async def test_announcements_reach_followers(store: Store) -> None:
    heard, clients = await TailReader(store, PRESENCE).ready(), Clients(store)
    await clients.join("chat", "ann")
    await clients.leave("chat", "ann")
    entries = await read_all(store, PRESENCE)
    assert await heard.until(entries[-1]) == entries
    heard.stop()


async def test_clients_stay_while_their_worker_lives(store: Store) -> None:
    clients = Clients(store)
    await clients.join("chat", "ann")
    await clients.presence.refresh()
    assert await clients.on("chat") == ["ann"]
    assert await announced(store) == ["join chat ann"]


async def test_workers_have_a_name_and_a_lease(store: Store) -> None:
    assert re.fullmatch("[0-9a-f]{12}", store.workers.me)
    assert await store.workers.alive(store.workers.me)
    assert not await store.workers.alive("0" * 12)
    assert store.workers.lease >= 0.0


async def test_workers_can_send_to_themselves_in_order(store: Store) -> None:
    inbox, other = MessageRecorder(), MessageRecorder()
    store.bus.subscribe("inbox", inbox)
    store.bus.subscribe("else", other)
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        assert await store.bus.send(store.workers.me, "inbox", data)
    assert await inbox.until(sent[-1]) == sent
    assert not await store.bus.send("0" * 12, "inbox", b"nobody")
    assert await store.bus.send(store.workers.me, "else", b"end")
    await other.until(b"end")
    assert inbox.items == sent


async def test_store_clock_is_wall_time(store: Store) -> None:
    before = time.time()
    assert before - 60.0 <= store.time() <= time.time() + 60.0


# Several workers


STREAM = "hub:journal"


async def until_gone(store: Store, worker: str) -> None:
    """Return once a worker has no lease anymore."""

    async def gone() -> bool:
        return not await store.workers.alive(worker)

    await until_workers(store, gone)


# values and streams


async def test_writes_are_visible_to_every_worker(backing: Backing) -> None:
    one, two = await backing.worker(), await backing.worker()
    assert one.shared
    assert two.shared
    assert one.epoch == two.epoch
    for n in range(20):
        await one.kv.put("key", b"%d" % n, TTL)
        assert await two.kv.get("key") == b"%d" % n
        positions = await append(one, STREAM, b"%d" % n)
        assert (await two.log.newest(STREAM, 1)) == [Entry(positions[0], b"%d" % n)]
    assert await two.kv.delete("key")
    assert await one.kv.get_many(["key"]) == [None]


async def test_only_one_of_several_workers_succeeds_with_compare_and_set(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]
    for n in range(20):
        tries = [each.kv.compare_and_set(f"lease:{n}", None, b"x", TTL) for each in workers for _ in range(3)]
        assert sum(await asyncio.gather(*tries)) == 1


async def test_counters_with_compare_and_set_lose_no_increment(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]

    async def count(store: Store) -> None:
        done = 0
        while done < 30:
            now = await store.kv.get("count")
            done += await store.kv.compare_and_set("count", now, b"%d" % (int(now or b"0") + 1), TTL)

    async with asyncio.timeout(WAIT):
        await asyncio.gather(*(count(each) for each in workers))
    assert await workers[0].kv.get("count") == b"90"


async def test_appends_from_all_workers_have_the_same_order_everywhere(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]
    sent = await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    entries = await read_all(workers[0], STREAM)
    assert [each.position for each in entries] == sorted(
        (each for some in sent for each in some), key=lambda p: p.offset
    )
    assert len(entries) == 150
    assert await read_all(workers[2], STREAM) == entries


async def test_sealed_logs_are_sealed_for_every_worker(backing: Backing) -> None:
    owner, other = await backing.worker(), await backing.worker()
    await append(owner, "call:1", b"begun")
    await other.log.append("call:1", b"closed by another", ttl=TTL, max_entries=10, seal=True)
    with pytest.raises(StreamSealed):
        await append(owner, "call:1", b"late")
    assert data_of(await read_all(owner, "call:1")) == [b"begun", b"closed by another"]


async def test_one_of_several_workers_appends_an_entry_that_must_not_repeat(backing: Backing) -> None:
    one, two = await backing.worker(), await backing.worker()

    async def once(store: Store, number: int) -> int:
        try:
            await store.log.append(STREAM, b"%d" % number, ttl=TTL, max_entries=100, once=f"id {number}")
        except EntryRepeated:
            return 0
        return 1

    for number in range(5):
        assert sum(await asyncio.gather(*(once(store, number) for store in (one, two, one)))) == 1
    assert data_of(await read_all(two, STREAM)) == [b"%d" % number for number in range(5)]


async def test_appends_reach_listeners_on_every_worker(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]
    ears = [await TailReader(each, STREAM).ready() for each in workers]
    await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    entries = await read_all(workers[0], STREAM)
    for ear in ears:
        for entry in entries:
            await ear.until(entry)
        assert ear.items == entries
        ear.stop()


async def test_followers_receive_concurrent_appends_once_in_order(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]
    ends = [MessageRecorder() for _ in workers]
    taken: list[list[Entry]] = [[] for _ in workers]

    async def follow(n: int) -> None:
        def take(entries: object) -> None:
            taken[n] += entries  # type: ignore[arg-type]
            for entry in taken[n]:
                ends[n](entry.data)

        tail = Tail(workers[n].log, Troubles(), STREAM, None, take, lambda gap: pytest.fail(str(gap)))
        await tail.catch_up()
        try:
            await tail.run()
        finally:
            tail.stop()

    tasks = [asyncio.create_task(follow(n)) for n in range(3)]
    await asyncio.gather(*(append(each, STREAM, *[b"%d" % n] * 50) for n, each in enumerate(workers)))
    await append(workers[0], STREAM, b"end")
    for end in ends:
        await end.until(b"end")
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    entries = await read_all(workers[1], STREAM)
    assert taken == [entries] * 3


# messages


async def test_published_messages_reach_other_workers_in_order(backing: Backing) -> None:
    one, two = await backing.worker(), await backing.worker()
    inbox, own = MessageRecorder(), MessageRecorder()
    two.bus.subscribe("topic", inbox)
    one.bus.subscribe("topic", own)
    async with asyncio.timeout(WAIT):
        while b"there" not in inbox.items:  # who subscribes isn't told when it works
            await one.bus.publish("topic", b"there")
            await two.kv.get("key")
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        await one.bus.publish("topic", data)
    assert [each for each in await inbox.until(sent[-1]) if each != b"there"] == sent
    assert [each for each in await own.until(sent[-1]) if each != b"there"] == sent


async def test_later_workers_do_not_receive_earlier_messages(backing: Backing) -> None:
    one = await backing.worker()
    await one.bus.publish("topic", b"before")
    two = await backing.worker()
    inbox = MessageRecorder()
    two.bus.subscribe("topic", inbox)
    await one.bus.publish("topic", b"after")
    assert await inbox.until(b"after") == [b"after"]


async def test_messages_from_several_workers_arrive_in_the_same_order_everywhere(backing: Backing) -> None:
    workers = [await backing.worker() for _ in range(3)]
    heard = [MessageRecorder() for _ in workers]
    for worker, inbox in zip(workers, heard, strict=True):
        worker.bus.subscribe("topic", inbox)
    async with asyncio.timeout(WAIT):
        while not all(inbox.items for inbox in heard):
            await workers[0].bus.publish("topic", b"there")
            await asyncio.gather(*(worker.kv.get("key") for worker in workers))

    async def publish(number: int) -> None:
        for turn in range(50):
            await workers[number].bus.publish("topic", b"%d-%d" % (number, turn))

    await asyncio.gather(*(publish(number) for number in range(len(workers))))
    await workers[0].bus.publish("topic", b"last")
    orders = [[each for each in await inbox.until(b"last") if each != b"there"] for inbox in heard]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 3 * 50 + 1


async def test_direct_messages_reach_only_their_worker(backing: Backing) -> None:
    one, two, three = [await backing.worker() for _ in range(3)]
    inboxes = {each.workers.me: MessageRecorder() for each in (one, two, three)}
    for each in (one, two, three):
        each.bus.subscribe("inbox", inboxes[each.workers.me])
    sent = [b"%d" % n for n in range(50)]
    for data in sent:
        assert await one.bus.send(two.workers.me, "inbox", data)
    assert await inboxes[two.workers.me].until(sent[-1]) == sent
    for each in (one, three):
        assert await two.bus.send(each.workers.me, "inbox", b"end")
        assert await inboxes[each.workers.me].until(b"end") == [b"end"]


async def test_messages_to_expired_workers_fail(backing: Backing) -> None:
    one, two = await backing.worker(), await backing.worker()
    dead = two.workers.me
    two.bus.subscribe("inbox", MessageRecorder())
    assert await one.bus.send(dead, "inbox", b"alive")
    await backing.kill(two)
    await until_gone(one, dead)
    assert not await one.bus.send(dead, "inbox", b"late")
    another = await backing.worker()
    assert another.workers.me != dead
    assert not await one.bus.send(dead, "inbox", b"late")


# workers and members


async def test_workers_see_joins_and_leaves(backing: Backing) -> None:
    one = await backing.worker()
    changed = asyncio.Event()
    stop = one.workers.watch(changed.set)
    two, three = await backing.worker(), await backing.worker()
    async with asyncio.timeout(WAIT):
        await changed.wait()
    stop()
    stop()
    assert len({each.workers.me for each in (one, two, three)}) == 3
    assert await one.workers.alive(two.workers.me)
    assert await two.workers.alive(one.workers.me)
    dead, closed = two.workers.me, three.workers.me
    await backing.kill(two)
    await until_gone(one, dead)
    await three.close()
    await until_gone(one, closed)
    assert await one.workers.alive(one.workers.me)


async def test_first_worker_announces_join_and_last_announces_leave(backing: Backing) -> None:
    store = await backing.worker()
    one, two = Clients(store), Clients(await backing.worker())
    await one.join("chat", "ann", "first")
    await two.join("chat", "ann", "second")
    assert await one.on("chat") == await two.on("chat") == ["first"]
    await one.leave("chat", "ann")
    assert await announced(store) == ["join chat ann"]
    assert await one.on("chat") == ["first"]
    await two.leave("chat", "ann")
    assert await one.on("chat") == []
    assert await announced(store) == ["join chat ann", "leave chat ann"]


async def test_concurrent_workers_announce_one_join_and_one_leave(backing: Backing) -> None:
    stores = [await backing.worker() for _ in range(3)]
    workers = list(map(Clients, stores))
    for n in range(20):
        await asyncio.gather(*(each.join("chat", f"{n}") for each in workers))
        await asyncio.gather(*(each.leave("chat", f"{n}") for each in workers))
    assert await announced(stores[0]) == [f"{what} chat {n}" for n in range(20) for what in ("join", "leave")]


async def test_abandoned_clients_leave_once(backing: Backing) -> None:
    stores = [await backing.worker() for _ in range(3)]
    dead, one, two = map(Clients, stores)
    name = stores[0].workers.me
    for n in range(20):
        await dead.join("chat", f"{n}")
    await dead.join("den", "ann", "Ann")
    await one.join("den", "ann")
    joins = await announced(stores[1])
    await backing.kill(stores[0])
    await until_gone(stores[1], name)
    assert await two.on("chat") == []
    await asyncio.gather(*(each.presence.refresh() for each in (one, two)))
    leaves = (await announced(stores[1]))[len(joins) :]
    assert sorted(leaves) == sorted(f"leave chat {n}" for n in range(20))
    assert await two.on("den") == ["Ann"], "another worker has this client"
    await one.leave("den", "ann")
    await two.join("chat", "3")
    assert (await announced(stores[1]))[len(joins) + 20 :] == ["leave den ann", "join chat 3"]
    assert await one.on("chat") == ["3"]


async def test_clients_of_a_closed_worker_leave(backing: Backing) -> None:
    gone, store = await backing.worker(), await backing.worker()
    name, one = gone.workers.me, Clients(store)
    await Clients(gone).join("chat", "ann")
    await gone.close()
    await until_gone(store, name)
    await one.presence.refresh()
    assert await announced(store) == ["join chat ann", "leave chat ann"]


async def test_clients_that_return_in_time_never_left(backing: Backing) -> None:
    dead, store = await backing.worker(), await backing.worker()
    name, one = dead.workers.me, Clients(store)
    await Clients(dead).join("chat", "ann")
    await backing.kill(dead)
    await until_gone(store, name)
    await one.join("chat", "ann")
    await one.presence.refresh()
    assert await one.on("chat") == ["ann"]
    assert await announced(store) == ["join chat ann"]
    await one.leave("chat", "ann")
    assert await announced(store) == ["join chat ann", "leave chat ann"]


async def test_last_living_worker_announces_the_leave(backing: Backing) -> None:
    dead, store = await backing.worker(), await backing.worker()
    name, one = dead.workers.me, Clients(store)
    await Clients(dead).join("chat", "ann")
    await one.join("chat", "ann")
    await backing.kill(dead)
    await until_gone(store, name)
    await one.leave("chat", "ann")
    await one.presence.refresh()
    assert await announced(store) == ["join chat ann", "leave chat ann"]


# Limits


HOUR = 3600


def slots(count: int, *holders: str) -> list[ConcurrencySlot]:
    return [ConcurrencySlot("slots", count, holder) for holder in holders]


async def are_allowed(store: Store, *charges: Charge) -> bool:
    """Return whether the store allows all charges."""
    return all(each.wait == 0 for each in await store.charge(charges))


async def how_many(stores: Sequence[Store], times: int, charge: Charge) -> int:
    """Return how many concurrent charges are allowed, spread over the workers."""
    done = await asyncio.gather(*(are_allowed(stores[number % len(stores)], charge) for number in range(times)))
    return sum(done)


async def test_rates_allow_a_burst_and_then_return_a_wait(store: Store) -> None:
    assert await how_many([store], 12, RateCharge("a", 10, 10 * HOUR)) == 10
    (refused,) = await store.charge([RateCharge("a", 10, 10 * HOUR)])
    assert HOUR - 600 < refused.wait <= HOUR
    assert (int(refused.remaining), refused.amount) == (0, 0.0)
    assert await are_allowed(store, RateCharge("b", 10, 10 * HOUR))


async def test_costs_are_charged_and_capped_at_the_burst(store: Store) -> None:
    first, second = await store.charge([RateCharge("a", 10, HOUR, cost=4), Quota("a", 10, store.time() + HOUR, 4)])
    assert (first.amount, round(first.remaining)) == (second.amount, round(second.remaining)) == (4.0, 6)
    assert not await are_allowed(store, RateCharge("a", 10, HOUR, cost=7))
    assert await are_allowed(store, RateCharge("b", 10, HOUR, cost=25))
    (refused,) = await store.charge([RateCharge("b", 10, HOUR)])
    assert refused.wait > HOUR


async def test_negative_costs_give_back_what_was_taken(store: Store) -> None:
    taken, back = RateCharge("a", 2, 2 * HOUR), RateCharge("a", 2, 2 * HOUR, -1, -1)
    assert [await are_allowed(store, each) for each in (taken, taken, back, taken, taken)] == [True] * 4 + [False]
    for _ in range(5):
        assert await are_allowed(store, back)
    assert await how_many([store], 5, taken) == 2


async def test_rejected_charges_do_not_change_the_balance(store: Store) -> None:
    until = store.time() + HOUR
    full = Quota("full", 1, until)
    assert await are_allowed(store, full)
    for _ in range(3):
        assert not await are_allowed(
            store, RateCharge("a", 1, HOUR), Quota("b", 1, until), ConcurrencySlot("c", 1, "x"), full
        )
        assert not await are_allowed(
            store, full, RateCharge("a", 1, HOUR), Quota("b", 1, until), ConcurrencySlot("c", 1, "x")
        )
    assert await are_allowed(store, RateCharge("a", 1, HOUR), Quota("b", 1, until), ConcurrencySlot("c", 1, "y"))


async def test_callers_can_prefetch_tokens(store: Store) -> None:
    amounts = [(await store.charge([RateCharge("a", 25, 25 * HOUR, most=10)]))[0].amount for _ in range(3)]
    assert amounts == [10.0, 10.0, 5.0]
    assert not await are_allowed(store, RateCharge("a", 25, 25 * HOUR, most=10))


async def test_quotas_return_their_remaining_time(store: Store) -> None:
    now = store.time()
    assert await are_allowed(store, Quota("day", 2, now + HOUR, 2))
    (refused,) = await store.charge([Quota("day", 2, now + HOUR)])
    assert HOUR - 600 < refused.wait <= HOUR + 1
    for _ in range(3):
        assert await are_allowed(store, Quota("yesterday", 1, now - HOUR))


async def test_concurrency_slots_are_held_until_released(store: Store) -> None:
    assert [await are_allowed(store, slot) for slot in slots(2, "x", "y", "z", "x")] == [True, True, False, True]
    (refused,) = await store.charge(slots(2, "z"))
    assert refused.wait == SLOT_WAIT
    await store.release(slots(2, "x", "nobody"))
    await store.release([ConcurrencySlot("unknown", 2, "x")])
    assert [await are_allowed(store, slot) for slot in slots(2, "z", "x")] == [True, False]


async def test_quotas_survive_closing_the_store(store: Store) -> None:
    until = store.time() + HOUR
    assert await are_allowed(store, Quota("month", 1, until))
    await store.close()
    await store.open()
    assert not await are_allowed(store, Quota("month", 1, until))


async def test_workers_share_the_available_tokens(backing: Backing) -> None:
    stores = [await backing.worker() for _ in range(4)]
    until = stores[0].time() + HOUR
    assert await how_many(stores, 60, RateCharge("a", 20, HOUR * 20)) == 20
    assert await how_many(stores, 60, Quota("a", 20, until)) == 20
    for number in range(60):
        slot = ConcurrencySlot("s", 20, str(number))
        assert await are_allowed(stores[number % 4], slot) == (number < 20)

    async def all_count() -> bool:
        return len(stores[0].workers.live) == 4

    await until_workers(stores[0], all_count)


async def test_slots_held_by_dead_workers_are_released(backing: Backing) -> None:
    first, second = await backing.worker(), await backing.worker()
    assert await are_allowed(first, *slots(1, "x"))
    assert not await are_allowed(second, *slots(1, "x"))
    await backing.kill(first)
    await until_workers(second, lambda: are_allowed(second, *slots(1, "x")))


async def test_rate_kinds_have_separate_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._stores.memory.store.MAX_PACES", 100)
    store = MemoryStore()
    await store.open()
    guesses, other = RateCharge("0123abc", 1, 3600), RateCharge("4567def", 1, 3600)
    for each in (guesses, other):
        assert (await store.charge([each]))[0].wait <= 0
    for number in range(1000):
        assert (await store.charge([RateCharge(f"dpop:{number}", 1, 120)]))[0].wait <= 0
    for each in (guesses, other, RateCharge("dpop:999", 1, 120)):
        assert (await store.charge([each]))[0].wait > 0
    await store.close()
