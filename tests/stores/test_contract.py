"""What `millstream._stores.base` promises of values and messages, asked of every store. Expiry is in each store's own
tests.
"""

import asyncio
from contextlib import suppress

import pytest

from millstream._stores.base import ShareFull, Store, StoreFull
from millstream._stores.rates import MARK_BYTES, share_of
from store_parts import TTL, Heard, append


async def test_the_epoch_is_short_visible_ascii_so_that_it_fits_into_ids(store: Store) -> None:
    """Our choice: session and event ids carry it."""
    assert 1 <= len(store.epoch) <= 16
    assert all("!" <= char <= "~" for char in store.epoch)


async def test_close_keeps_what_is_stored_and_open_may_follow(store: Store) -> None:
    """Our choice: the runtime closes a store after a time without work and opens it again."""
    await store.kv.put("key", b"value", TTL)
    (first,) = await append(store, "stream", b"a")
    epoch = store.epoch
    await store.close()
    await store.close()
    await store.open()
    assert store.epoch == epoch
    assert await store.kv.get("key") == b"value"
    assert await store.log.read("stream", first) == []


# key-value


async def test_an_absent_key_is_none_and_an_empty_value_is_not(store: Store) -> None:
    """The contract of `KeyValue.get`."""
    assert await store.kv.get("key") is None
    await store.kv.put("key", b"", TTL)
    assert await store.kv.get("key") == b""


async def test_put_replaces_and_values_are_any_bytes(store: Store) -> None:
    """The contract of `KeyValue.put`."""
    value = bytes(range(256)) * 100
    await store.kv.put("key", b"old", TTL)
    await store.kv.put("key", value, TTL)
    assert await store.kv.get("key") == value


async def test_delete_tells_whether_the_key_was_there(store: Store) -> None:
    """The contract of `KeyValue.delete`."""
    await store.kv.put("key", b"value", TTL)
    assert await store.kv.delete("key") is True
    assert await store.kv.get("key") is None
    assert await store.kv.delete("key") is False


@pytest.mark.parametrize("present", [None, b"", b"one", b"two"])
@pytest.mark.parametrize("expected", [None, b"", b"one"])
@pytest.mark.parametrize("value", [None, b"", b"new"])
async def test_compare_and_set_writes_only_over_what_was_expected(
    store: Store, present: bytes | None, expected: bytes | None, value: bytes | None
) -> None:
    """The contract of `KeyValue.compare_and_set`: an expected None is absence, a value of None is deletion."""
    if present is not None:
        await store.kv.put("key", present, TTL)
    done = await store.kv.compare_and_set("key", expected, value, TTL)
    assert done is (present == expected)
    assert await store.kv.get("key") == (value if done else present)


async def test_of_many_that_compare_with_the_same_value_one_wins(store: Store) -> None:
    """The contract of `KeyValue.compare_and_set`: leases and single answers stand on it."""
    tries = [store.kv.compare_and_set("lease", None, b"%d" % n, TTL) for n in range(20)]
    won = await asyncio.gather(*tries)
    assert sum(won) == 1
    assert await store.kv.get("lease") == b"%d" % won.index(True)


async def test_keys_are_found_by_prefix_taken_literally(store: Store) -> None:
    """The contract of `KeyValue.keys`; wildcards of a store behind it must not shine through."""
    names = ["s:1", "s:2", "s", "t:1", "s*", "s?x", "s[1]", "s%", "s_", "S:3", "sé"]
    for name in names:
        await store.kv.put(name, b"", TTL)
    await store.kv.delete("s:2")
    names.remove("s:2")
    for prefix in ["", "s", "s:", "s*", "s?", "s[", "s%", "s_", "sé", "nothing"]:
        assert sorted(await store.kv.keys(prefix)) == sorted(name for name in names if name.startswith(prefix))


@pytest.mark.many
async def test_what_one_kind_of_key_takes_is_not_taken_from_another(store: Store) -> None:
    """Fixed defect: debts of streamed calls, which anybody can make, kept sessions from subscribing for days."""
    piece = bytes(2**20)
    with suppress(StoreFull):
        for number in range(200):
            await store.kv.put(f"debt:{number}", piece, TTL)
    await store.kv.put("session:ada", piece, TTL)
    assert await store.kv.compare_and_set("once:ada", None, piece, TTL)
    assert await store.kv.get("debt:0") == await store.kv.get("session:ada") == piece


@pytest.mark.many
async def test_a_lossy_value_takes_the_place_of_the_one_written_the_longest_ago(store: Store) -> None:
    """The contract of `KeyValue`: oldest out, and only what was written as lossy."""
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
async def test_one_share_takes_a_part_of_the_room_and_no_more(store: Store) -> None:
    """Fixed defect: one address could fill all records, and nobody else could subscribe until they expired."""
    kv, piece = store.kv, bytes(2**20)
    number = 0
    with suppress(ShareFull):
        while number < 200:
            await kv.put(f"session:greedy.{number}", piece, TTL)
            number += 1
    assert 4 < number < 200
    with pytest.raises(ShareFull):
        await kv.compare_and_set("session:greedy.new", None, piece, TTL)
    with pytest.raises(ShareFull):
        await kv.put("session:greedy.0", bytes(2**21), TTL)
    # What doesn't grow is never refused, nor is a mark.
    await kv.put("session:greedy.0", bytes(2**20), TTL)
    assert await kv.compare_and_set("session:greedy.0", piece, b"x" * 2**20, TTL)
    await kv.put("session:greedy.mark", bytes(MARK_BYTES), TTL)
    # Others have room, and so have those who belong to no share.
    for other in ("modest.0", "modest.1", "unshared"):
        assert await kv.compare_and_set(f"session:{other}", None, piece, TTL)
    # What ends gives its room back.
    assert await kv.delete("session:greedy.1")
    await kv.put("session:greedy.new", piece, TTL)
    with pytest.raises(ShareFull):
        await kv.put("session:greedy.newer", piece, TTL)
    await kv.put("session:greedy.2", bytes(MARK_BYTES), TTL)
    await kv.put("session:greedy.newer", piece[:-MARK_BYTES], TTL)


async def test_only_the_kinds_that_have_shares_have_them() -> None:
    """A dot in a channel's name or a client's id means nothing."""
    assert [share_of(key) for key in ("session:a.b", "session:a", "session:.b", "debt:a.b", "a.b", "session")] == [
        "a", "", "", "", "", "",
    ]  # fmt: skip


async def test_several_values_come_in_the_order_in_which_they_were_asked_for(store: Store) -> None:
    """The contract of `KeyValue.get_many`."""
    await store.kv.put("s:1", b"one", TTL)
    await store.kv.put("t:2", b"", TTL)
    assert await store.kv.get_many(["t:2", "s:3", "s:1", "t:2"]) == [b"", None, b"one", b""]
    assert await store.kv.get_many([]) == []


# bus


async def test_messages_reach_every_subscriber_of_the_topic_in_order(store: Store) -> None:
    """The contract of `Bus`: the publisher's own worker is served too."""
    one, two, other = Heard(), Heard(), Heard()
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


async def test_publishing_to_nobody_is_no_error_and_is_not_kept(store: Store) -> None:
    """The contract of `Bus`: at most once."""
    await store.bus.publish("topic", b"lost")
    inbox = Heard()
    store.bus.subscribe("topic", inbox)
    await store.bus.publish("topic", b"heard")
    await inbox.until(b"heard")
    assert inbox.items == [b"heard"]


async def test_after_unsubscribe_nothing_arrives_and_a_second_call_does_nothing(store: Store) -> None:
    """The contract of `Bus.subscribe`."""
    gone, stays = Heard(), Heard()
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


async def test_a_receiver_may_end_another_that_has_not_been_called_yet(store: Store) -> None:
    """The contract of `Bus.subscribe`: after the returned function, the receiver is not called any more."""
    late, end = Heard(), Heard()
    store.bus.subscribe("topic", lambda _data: stop_late())
    stop_late = store.bus.subscribe("topic", late)
    store.bus.subscribe("topic", end)
    await store.bus.publish("topic", b"end")
    await end.until(b"end")
    assert late.items == []


async def test_close_ends_subscriptions(store: Store) -> None:
    """The contract of `Store.close`."""
    inbox, end = Heard(), Heard()
    stop = store.bus.subscribe("topic", inbox)
    await store.close()
    await store.open()
    stop()
    store.bus.subscribe("topic", end)
    await store.bus.publish("topic", b"end")
    await end.until(b"end")
    assert inbox.items == []
