"""What `millstream._stores.base` promises of an append beyond its order: the index, the seal, and who hears of it."""

import asyncio
from typing import Any

import pytest

from millstream._stores.base import Entry, Gap, Index, Sealed, Store, StoreFull
from store_parts import TTL, Heard, append, data_of, read_all

INDEX = Index("history:news", TTL, 1000)


async def add(store: Store, data: bytes, stream: str = "hub:journal", **options: Any) -> Entry:
    position = await store.log.append(stream, data, ttl=TTL, max_entries=options.pop("max_entries", 1000), **options)
    return Entry(position, data)


# index


async def test_an_indexed_entry_stands_in_both_streams_at_the_position_of_the_first(store: Store) -> None:
    """The contract of `Index`: what a history shows can be compared with what the journal brought."""
    journal = [
        await add(store, b"other"),
        await add(store, b"a", index=INDEX),
        await add(store, b"other", index=Index("history:else", TTL, 9)),
        await add(store, b"b", index=INDEX),
    ]
    assert await store.log.read("hub:journal", None) == journal
    history = [journal[1], journal[3]]
    assert await store.log.read(INDEX.stream, None) == history == await store.log.newest(INDEX.stream, 5)
    assert await store.log.read(INDEX.stream, history[0].position) == [history[1]]
    assert await store.log.newest(INDEX.stream, 1) == [history[1]]


@pytest.mark.many
async def test_an_index_keeps_what_the_first_stream_has_dropped(store: Store) -> None:
    """The contract of `Index`: it's for reading exactly that."""
    kept = await add(store, b"kept", index=INDEX)
    for n in range(500):
        await add(store, b"%d" % n, max_entries=2)
    with pytest.raises(Gap):
        await store.log.read("hub:journal", kept.position)
    assert await store.log.read(INDEX.stream, None) == [kept]
    last = await add(store, b"last", index=INDEX)
    assert await store.log.read(INDEX.stream, kept.position) == [last]


@pytest.mark.many
async def test_an_index_has_a_length_of_its_own(store: Store) -> None:
    """The contract of `Index`: the newest are kept, and a place that was dropped is a gap."""
    short = Index("history:short", TTL, 3)
    entries = [await add(store, b"%d" % n, index=short) for n in range(500)]
    held = await store.log.read(short.stream, None)
    assert held == entries[500 - len(held) :]
    assert 3 <= len(held) < 500
    assert len(await read_all(store, "hub:journal")) == 500
    with pytest.raises(Gap):
        await store.log.read(short.stream, entries[0].position)


@pytest.mark.many
async def test_an_append_that_is_refused_leaves_nothing_in_the_index(store: Store) -> None:
    """The contract of `EventLog.append`: both or none."""
    await add(store, b"end", "hub:ended", seal=True)
    with pytest.raises(Sealed):
        await add(store, b"late", "hub:ended", index=INDEX)
    with pytest.raises(StoreFull):
        await add(store, bytes(200 * 2**20), index=INDEX)
    assert await store.log.read(INDEX.stream, None) == await store.log.read("hub:journal", None) == []


async def test_a_trimmed_index_begins_again_at_the_positions_of_the_first_stream(store: Store) -> None:
    """The contract of `Index`: a history that was cleared goes on with the journal."""
    old, lost = await add(store, b"old", index=INDEX), await add(store, b"lost", index=INDEX)
    await store.log.trim(INDEX.stream)
    assert await store.log.read(INDEX.stream, None) == []
    new = await add(store, b"new", index=INDEX)
    assert await store.log.read(INDEX.stream, None) == [new]
    with pytest.raises(Gap):
        await store.log.read(INDEX.stream, old.position)
    assert await store.log.read("hub:journal", None) == [old, lost, new]


# seal


async def test_nothing_is_added_behind_the_last_entry_of_a_sealed_stream(store: Store) -> None:
    """The contract of `EventLog.append`: a worker that was stopped can't write behind the end."""
    first = await add(store, b"first", "call:1")
    end = await add(store, b"end", "call:1", seal=True)
    assert end.position.offset == first.position.offset + 1
    for seal in (False, True):
        with pytest.raises(Sealed):
            await add(store, b"late", "call:1", seal=seal)
    assert await store.log.read("call:1", None) == [first, end]
    assert await store.log.read("call:1", end.position) == []
    assert await store.log.touch("call:1", TTL)
    await add(store, b"fine", "call:2")


async def test_a_stream_may_begin_with_its_last_entry(store: Store) -> None:
    """A call whose worker died before it wrote anything is closed by whoever asks for it."""
    end = await add(store, b"end", "call:1", seal=True)
    with pytest.raises(Sealed):
        await add(store, b"late", "call:1")
    assert await store.log.read("call:1", None) == [end]


async def test_of_many_that_seal_a_stream_at_once_one_does(store: Store) -> None:
    """The contract of `EventLog.append`: a stream has one end."""
    tries = await asyncio.gather(
        *(add(store, b"%d" % n, "call:1", seal=True) for n in range(20)), return_exceptions=True
    )
    ends = [each for each in tries if isinstance(each, Entry)]
    assert [type(each) for each in tries if each not in ends] == [Sealed] * 19
    assert await store.log.read("call:1", None) == ends


async def test_a_forgotten_stream_is_not_sealed_any_more(store: Store) -> None:
    """The contract of `EventLog.append`: an unknown stream begins with the entry."""
    await add(store, b"end", "call:1", seal=True)
    await store.log.trim("call:1")
    again = await add(store, b"again", "call:1")
    assert await store.log.read("call:1", None) == [again]


# hearing


async def test_whoever_listens_hears_each_entry_with_its_position(store: Store) -> None:
    """The contract of `EventLog.listen`: without an announcement by the writer."""
    one, two, other = Heard(), Heard(), Heard()
    before = await add(store, b"before")
    store.log.listen("hub:journal", one)
    store.log.listen("hub:journal", two)
    store.log.listen("hub:other", other)
    await store.log.listening("hub:journal")
    entries = [await add(store, b"%d" % n, index=INDEX) for n in range(50)]
    assert [each for each in await one.until(entries[-1]) if each != before] == entries
    assert [each for each in await two.until(entries[-1]) if each != before] == entries
    ended = await add(store, b"end", "hub:other", seal=True)
    assert await other.until(ended) == [ended]


async def test_who_stopped_listening_hears_nothing_more(store: Store) -> None:
    """The contract of `EventLog.listen`."""
    gone, stays = Heard(), Heard()
    stop = store.log.listen("hub:journal", gone)
    store.log.listen("hub:journal", stays)
    await store.log.listening("hub:journal")
    first = await add(store, b"first")
    await gone.until(first)
    stop()
    stop()
    last = await add(store, b"last")
    await stays.until(last)
    assert gone.items == [first]


async def test_listening_can_begin_again(store: Store) -> None:
    """The contract of `EventLog.listening`, also where the last listener just went."""
    for n in range(5):
        heard = Heard()
        stop = store.log.listen("hub:journal", heard)
        await store.log.listening("hub:journal")
        entry = await add(store, b"%d" % n)
        assert (await heard.until(entry))[-1] == entry
        stop()


async def test_an_entry_that_was_refused_is_not_heard(store: Store) -> None:
    """The contract of `EventLog.listen`: what was appended, and that only."""
    heard = Heard()
    store.log.listen("call:1", heard)
    await store.log.listening("call:1")
    end = await add(store, b"end", "call:1", seal=True)
    with pytest.raises(Sealed):
        await add(store, b"late", "call:1")
    await store.log.trim("call:1")
    again = await add(store, b"again", "call:1")
    assert await heard.until(again) == [end, again]


async def test_close_ends_listening(store: Store) -> None:
    """The contract of `Store.close`."""
    heard, after = Heard(), Heard()
    stop = store.log.listen("hub:journal", heard)
    await store.log.listening("hub:journal")
    await store.close()
    await store.open()
    stop()
    store.log.listen("hub:journal", after)
    await store.log.listening("hub:journal")
    (position,) = await append(store, "hub:journal", b"a")
    assert data_of(await after.until(Entry(position, b"a"))) == [b"a"]
    assert heard.items == []
