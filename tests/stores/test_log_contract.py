"""What `millstream._stores.base` promises of streams, asked of every store. Expiry is in each store's own tests."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from millstream._stores.base import Entry, Gap, Position, Store
from store_parts import BACKINGS, TTL, Backing, append, backings, data_of, read_all


async def test_entries_are_read_in_the_order_of_append(store: Store) -> None:
    """The contract of `EventLog`."""
    positions = await append(store, "stream", b"a", b"", b"c")
    assert await store.log.read("stream", None) == [
        Entry(position, data) for position, data in zip(positions, [b"a", b"", b"c"], strict=True)
    ]
    assert all(position.epoch == store.epoch for position in positions)
    first = positions[0].offset
    assert 1 <= first < 2**62
    assert [position.offset for position in positions] == [first, first + 1, first + 2]


async def test_reading_goes_on_behind_a_position_and_ends_empty(store: Store) -> None:
    """The contract of `EventLog.read`: ``after`` itself is not repeated."""
    positions = await append(store, "stream", b"a", b"b", b"c")
    assert data_of(await store.log.read("stream", positions[0])) == [b"b", b"c"]
    assert data_of(await store.log.read("stream", positions[0], 1)) == [b"b"]
    assert data_of(await store.log.read("stream", None, 2)) == [b"a", b"b"]
    assert data_of(await store.log.read("stream", positions[-1])) == []


async def test_offsets_are_dense_whatever_is_appended_to_other_streams(store: Store) -> None:
    """The contract of `Position`: a reader knows a loss by the hole that it leaves."""
    one: list[Position] = []
    two: list[Position] = []
    for _ in range(5):
        one += await append(store, "hub:one", b"", b"")
        two += await append(store, "hub:two", b"")
    for positions in (one, two):
        first = positions[0].offset
        assert [position.offset for position in positions] == list(range(first, first + len(positions)))


async def test_a_read_is_bounded_in_bytes_and_a_shorter_one_is_the_last(store: Store) -> None:
    """The contract of `EventLog.read`: a page of large entries must not be a reply of hundreds of megabytes."""
    positions = await append(store, "stream", *[bytes(1000)] * 10)
    page = await store.log.read("stream", positions[0], max_bytes=2500)
    assert [entry.position for entry in page] == positions[1:4]
    assert len(await store.log.read("stream", None, max_bytes=1)) == 1
    assert len(await store.log.read("stream", positions[7], max_bytes=2500)) == 2
    assert len(await store.log.read("stream", positions[4], 2, 2500)) == 2
    assert [entry.position for entry in await read_all(store, "stream", 2500)] == positions


async def test_the_newest_entries_can_be_had_without_the_rest(store: Store) -> None:
    """The contract of `EventLog.newest`: to show one line of a history, one is read."""
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


async def test_a_gap_tells_the_newest_position_so_that_a_reader_ahead_of_it_can_go_on(store: Store) -> None:
    """The contract of `Gap`: after a lost tail, a reader that stayed where it was would drop what follows."""
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


async def test_touch_knows_whether_the_stream_is_there(store: Store) -> None:
    """The contract of `EventLog.touch`; that it starts the time anew is in each store's own tests."""
    assert await store.log.touch("call:stream", TTL) is False
    (position,) = await append(store, "call:stream", b"a")
    assert await store.log.touch("call:stream", TTL) is True
    assert await store.log.read("call:stream", position) == []
    await store.log.trim("call:stream")
    assert await store.log.touch("call:stream", TTL) is False


async def test_streams_do_not_mix(store: Store) -> None:
    """The contract of `EventLog`: a position counts in its own stream."""
    for n in range(3):
        await append(store, "one", b"1%d" % n)
        await append(store, "two", b"2%d" % n)
    assert data_of(await store.log.read("one", None)) == [b"10", b"11", b"12"]
    assert data_of(await store.log.read("two", None)) == [b"20", b"21", b"22"]


async def test_an_unknown_stream_is_empty_from_the_start_and_a_gap_from_a_position(store: Store) -> None:
    """The contract of `EventLog.read`."""
    assert await store.log.read("nothing", None) == []
    with pytest.raises(Gap) as gap:
        await store.log.read("nothing", Position(store.epoch, 1))
    assert gap.value.epoch == store.epoch
    assert gap.value.oldest is None


async def test_a_position_of_another_epoch_is_a_gap_that_names_the_present_one(store: Store) -> None:
    """The contract of `EventLog.read`: offsets of another epoch say nothing."""
    positions = await append(store, "stream", b"a", b"b")
    with pytest.raises(Gap) as gap:
        await store.log.read("stream", Position("another", positions[0].offset))
    assert gap.value.epoch == store.epoch
    assert gap.value.oldest == positions[0]


async def test_a_position_behind_the_newest_entry_is_a_gap(store: Store) -> None:
    """The contract of `EventLog.read`: nobody was given it, or the tail was lost."""
    (position,) = await append(store, "stream", b"a")
    with pytest.raises(Gap):
        await store.log.read("stream", Position(store.epoch, position.offset + 1))


async def test_the_newest_entries_are_kept_and_a_dropped_one_is_a_gap_not_a_silent_skip(store: Store) -> None:
    """The contract of `EventLog.append`: at least the newest `max_entries` are there."""
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
async def test_what_one_kind_of_stream_takes_is_not_taken_from_another(store: Store) -> None:
    """The contract of `EventLog.append`: a kind that is full drops its own."""
    piece = bytes(2**20)
    kept = await append(store, "mailbox:ada", *[piece] * 40)
    for n in range(40):
        await append(store, f"call:{n}:a", piece)
    assert [entry.position for entry in await read_all(store, "mailbox:ada")] == kept


async def test_a_trimmed_stream_that_begins_again_never_reuses_a_position(store: Store) -> None:
    """The contract of `Position`: an old reader gets a gap, not the new entries as if nothing had been lost."""
    old = await append(store, "stream", b"a", b"b", b"c")
    await store.log.trim("stream")
    await store.log.trim("stream")
    assert await store.log.read("stream", None) == []
    for position in old:
        with pytest.raises(Gap):
            await store.log.read("stream", position)
    new = await append(store, "stream", b"d", b"e", b"f", b"g")
    assert new[0].offset > old[-1].offset + 1, "the hole tells those who hear of it by the bus"
    assert min(position.offset for position in new) > max(position.offset for position in old)
    for position in old[:2]:
        with pytest.raises(Gap):
            await store.log.read("stream", position)
    assert data_of(await store.log.read("stream", None)) == [b"d", b"e", b"f", b"g"]


# Resuming after any cut. The model is a plain list of all that was ever appended.

STREAMS = st.sampled_from(["one", "two"])


class LogMachine(RuleBasedStateMachine):
    """Readers that are cut anywhere and go on from any position that they were given lose and repeat nothing.

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
        """Read in pieces to the end, as a connection that is cut after each piece would."""
        got: list[Entry] = []
        while piece := await self.store.log.read(stream, after, limit):
            assert len(piece) <= limit
            got += piece
            after = piece[-1].position
        return got


@pytest.mark.many
@pytest.mark.parametrize("name", backings(BACKINGS))
def test_resume_after_any_cut_loses_and_repeats_nothing(name: str) -> None:
    """The contract of `EventLog`, as a state machine."""
    machine = type("Machine", (LogMachine,), {"make": staticmethod(BACKINGS[name])})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=30))
