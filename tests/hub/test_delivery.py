import asyncio
from itertools import pairwise
from typing import Any

import pytest

from cases import for_each
from hub_parts import Clock, MemoryStore, Outlet, encode_line, listen, open_hub, receive, turns
from millstream import Principal
from millstream.hub import Event, EventTooLarge, Forbidden, Hub, InvalidName, LimitExceeded
from millstream.middleware import Rate


async def test_strings_are_sent_unchanged_and_other_values_as_json() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub)
        await hub.publish("broadcast", "héllo\nthere")
        await hub.publish("broadcast", {"a": [1, None]}, event="named")
        await hub.publish("broadcast", None)
        assert outlet.data == ["héllo\nthere", '{"a":[1,null]}', "null"]
        assert [event for event, data, _ in outlet.events() if data is not None] == [None, "named", None]


async def test_publish_returns_id_and_local_subscriber_count() -> None:
    async with open_hub() as hub:
        one, _ = await listen(hub, "a"), await listen(hub, "a.>", "a")
        published = await hub.publish("a", "1")
        assert (published.id, published.subscribers) == (one.last_id, 2)
        assert (await hub.publish("b", "2")).subscribers == 0
        assert (await hub.publish("a", "3", id="order-7")).id == "order-7" == one.last_id


async def test_overlapping_channels_deliver_an_event_once() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub, "a.b", "a.*", "a.>", ">", "a.b")
        await hub.publish("a.b", "once")
        assert outlet.data == ["once"]


async def test_subscribers_receive_events_in_order() -> None:
    async with open_hub() as hub:
        some, every, client = await listen(hub, "a.*", "b"), await listen(hub, ">"), await listen(hub, "$presence.*")
        for number, channel in enumerate(["a.1", "b", "c", "a.2.x"]):
            await hub.publish(channel, str(number))
        await listen(hub, "a", client_id="ann")
        await hub.publish("a.3", "4")
        assert some.data == ["0", "1", "4"]
        assert every.data == ["0", "1", "2", "3", "4"]
        assert [event for event, data, _ in client.events() if data] == ["join"]


async def test_subscriptions_start_and_stop_delivery() -> None:
    async with open_hub() as hub:
        first = await listen(hub)
        wild = await listen(hub, "*")
        await hub.publish("broadcast", "1")
        second = await listen(hub)
        first.close()
        wild.close()
        await hub.publish("broadcast", "2")
        assert (first.data, wild.data, second.data) == (["1"], ["1"], ["2"])
        assert hub.stats().subscribers == 1


async def test_events_are_encoded_once_per_transport() -> None:
    encoded: list[Event] = []

    def encode(event: Event) -> bytes:
        encoded.append(event)
        return encode_line(event)

    async with open_hub() as hub:
        outlets = [Outlet() for _ in range(5)]
        for outlet in outlets:
            await hub.subscribe(["broadcast"], outlet, encode=encode)
        other = await listen(hub)
        encoded.clear()
        await hub.publish("broadcast", "x")
        assert len(encoded) == 1
        assert len({id(outlet.chunks[-1]) for outlet in outlets}) == 1
        assert outlets[0].chunks[-1] == other.chunks[-1]


async def test_slow_subscribers_are_disconnected_and_can_resume() -> None:
    async with open_hub(max_buffered=1000) as hub:
        good, slow = await listen(hub), Outlet(takes=False)
        await hub.subscribe(["broadcast"], slow, encode=encode_line)
        for number in range(20):
            await hub.publish("broadcast", f"{number} {'x' * 90}")
        assert len(good.data) == 20
        assert slow.closed
        assert slow.events()[-1][:2] == ("cut", '{"reason":"slow"}')
        assert hub.stats().disconnected == {"slow": 1}
        again = await listen(hub, last_event_id=slow.last_id)
        assert slow.data + again.data == good.data
        assert again.gaps == []


async def test_duplicate_event_ids_are_delivered_once() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    async with open_hub(store, clock=clock) as hub, open_hub(store, clock=clock) as other:
        outlets = [await listen(hub), await listen(other), await listen(hub, ">")]
        start = outlets[0].last_id
        await hub.publish("broadcast", "1", id="order 1")
        assert (await hub.publish("broadcast", "1", id="order 1")).subscribers == 0
        assert (await other.publish("broadcast", "1", id="order 1")).id == "order 1"
        await hub.publish("elsewhere", "1", id="order 1")
        both = (each.publish("broadcast", "2", id="order 2") for each in (hub, other, hub))
        assert [published.id for published in await asyncio.gather(*both)] == ["order 2"] * 3
        clock.now += 150
        await other.publish("broadcast", "1", id="order 1")
        await turns()
        assert [outlet.data for outlet in outlets] == [["1", "2", "1"], ["1", "2", "1"], ["1", "1", "2", "1"]]
        for each in (hub, other):
            assert (await listen(each, last_event_id=start)).data == ["1", "2", "1"]


async def test_store_recognizes_a_limited_number_of_ids_from_each_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._journal.NEW_IDS", Rate(4, 120))
    eve, ada = Principal("eve"), Principal("ada")
    async with open_hub() as hub:
        outlet = await listen(hub)
        for publisher in (eve, ada, None):
            for number in (0, 0, 1, 2, 3, 3):
                await hub.publish("broadcast", str(number), id=f"{publisher}{number}", publisher=publisher)
        await turns()
        assert outlet.data == [*"01233", *"01233", *"0123"]


async def test_subscribers_are_capped_per_address_and_channel() -> None:
    async with open_hub(max_connections=4, max_connections_per_address=2, max_subscribers_per_channel=3) as hub:
        first = await listen(hub, "a", address="1")
        await listen(hub, "a", address="1")
        with pytest.raises(LimitExceeded, match="address: 2"):
            await listen(hub, "b", address="1")
        await listen(hub, "a", address="2")
        with pytest.raises(LimitExceeded, match=r"channel: 3\)\. Try again later\.$"):
            await listen(hub, "b", "a", address="2")
        await listen(hub, "b", address="2")
        with pytest.raises(LimitExceeded, match=r"connections: 4\)\. Try again later\.$"):
            await listen(hub, "c", address="3")
        first.close()
        await listen(hub, "a", address="1")
        assert hub.stats().channels == {"a": 3, "b": 1}


@for_each("caller", [{"address": "192.0.2.1"}, {"address": "127.0.0.1", "principal": Principal("ada")}])
async def test_one_caller_gets_at_most_half_of_the_subscribers(caller: dict[str, Any]) -> None:
    async with open_hub(max_connections=4) as hub:
        first = await listen(hub, "a", **caller)
        await listen(hub, "a", **caller)
        with pytest.raises(LimitExceeded, match=r"yours: 2\)\. Unsubscribe from a channel or close a stream first\.$"):
            await listen(hub, "a", **caller)
        await listen(hub, "a", address="192.0.2.2")
        first.close()
        await listen(hub, "a", **caller)


async def test_local_subscribers_without_sign_in_are_not_limited_to_a_share() -> None:
    async with open_hub(max_connections=2) as hub:
        for _ in range(2):  # a proxy is one peer for all of its clients
            await listen(hub, "a", address="127.0.0.1")
        with pytest.raises(LimitExceeded, match="connections: 2"):
            await listen(hub, "a", address="127.0.0.1")


async def test_ipv6_networks_share_one_cap() -> None:
    async with open_hub(max_connections_per_address=2) as hub:
        first = await listen(hub, "a", address="2001:db8::1")
        await listen(hub, "a", address="2001:DB8:0::2")
        with pytest.raises(LimitExceeded, match="address: 2"):
            await listen(hub, "a", address="2001:db8::3")
        await listen(hub, "a", address="2001:db8:0:1::1")
        first.close()
        await listen(hub, "a", address="2001:db8::3")


async def test_permission_hook_applies_to_channels_and_patterns() -> None:

    def authorize(principal: Any, action: str, channel: str) -> bool:
        return not channel.startswith("secret") and (action, channel) != ("publish", "news")

    async with open_hub(authorize=authorize) as hub:
        with pytest.raises(Forbidden, match="subscribe to the channel 'secret'"):
            await listen(hub, "news", "secret")
        with pytest.raises(Forbidden, match="publish to channel 'news'"):
            hub.admission.publish("news")
        hub.admission.publish("chat")
        every = await listen(hub, ">")
        start = every.last_id
        await hub.publish("secret", "s")
        await hub.publish("news", "n")
        assert every.data == ["n"]
        assert (await listen(hub, ">", last_event_id=start)).data == ["n"]
        assert (await listen(hub, ">", history=9)).data == ["n"]


@for_each("channel", ["$client.me", "$client", "$client.*", "$client.>"])
async def test_client_channels_cannot_be_subscribed(channel: str) -> None:
    async with open_hub() as hub:
        with pytest.raises(Forbidden):
            await listen(hub, channel)


async def test_clients_cannot_publish_to_hub_channels() -> None:
    async with open_hub() as hub:
        for channel in ("$presence.chat", "$client.me"):
            with pytest.raises(Forbidden):
                hub.admission.publish(channel)


async def test_program_cannot_publish_to_hub_channels() -> None:
    async with open_hub() as hub:
        victim, watcher = await receive(hub, "victim"), await listen(hub, "$presence.room")
        for channel in ("$presence.room", "$client.victim", "$anything"):
            with pytest.raises(Forbidden, match="You aren't allowed to publish"):
                await hub.publish(channel, "forged")
        await hub.send("victim", "true")
        assert (victim.data, watcher.data) == (["true"], [])


@for_each(
    ("bad", "message"),
    [
        ({"event": "a\r\nb"}, "event name"),
        ({"event": ""}, "event name"),
        ({"event": "gap"}, "is reserved for the hub"),
        ({"id": "a\nb"}, "event id"),
        ({"id": "a\0"}, "event id"),
        ({"id": "here.12"}, "reserved for the hub"),
        ({"channel": "a.*"}, "wildcard"),
    ],
)
async def test_events_that_would_break_a_stream_are_rejected(bad: dict[str, str], message: str) -> None:
    async with open_hub(MemoryStore(epoch="here")) as hub:
        outlet = await listen(hub)
        with pytest.raises(InvalidName, match=message):
            await hub.publish(**{"channel": "broadcast", "data": "x", **bad})
        assert outlet.data == []


async def test_oversized_events_are_rejected() -> None:
    async with open_hub(max_event=10) as hub:
        await hub.publish("broadcast", "x" * 10)
        with pytest.raises(EventTooLarge):
            await hub.publish("broadcast", "x" * 11)


async def test_subscriptions_need_a_bounded_number_of_channels() -> None:
    async with open_hub(max_channels_per_subscriber=2) as hub:
        for channels in ([], ["a", "b", "c"]):
            with pytest.raises(InvalidName):
                await hub.subscribe(channels, Outlet(), encode=encode_line)


async def test_large_events_for_many_readers_leave_turns_to_the_event_loop() -> None:
    """Each write to a reader that doesn't read is a large `send`, and 150 of them for each reader took seconds."""
    event, totals = "x" * 200_000, [0]
    async with open_hub() as hub:
        readers = [await listen(hub, "news") for _ in range(30)]

        async def count() -> None:
            while True:
                totals.append(sum(len(chunk) for each in readers for chunk in each.chunks))
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for publishing in (
            asyncio.gather(*[hub.publish("news", event) for _ in range(40)]),
            asyncio.gather(*[publish_all(hub, event) for _ in range(2)]),
        ):
            await publishing
        counting.cancel()
    written = [after - before for before, after in pairwise(totals)]
    assert sum(written) > 80 * 30 * 200_000
    assert max(written) < 2 * 30 * 200_500


async def publish_all(hub: Hub, event: str) -> None:
    for _ in range(20):
        await hub.publish("news", event)


async def test_publishing_in_a_loop_yields_to_the_event_loop() -> None:
    async with open_hub() as hub:
        turned = False

        async def other() -> None:
            nonlocal turned
            turned = True

        task = asyncio.create_task(other())
        for _ in range(100):
            await hub.publish("broadcast", "x")
        assert turned
        await task


async def test_closing_the_hub_ends_its_subscribers_and_may_be_repeated() -> None:
    async with open_hub() as hub:
        outlet = await listen(hub, client_id="me")
        await hub.close()
        assert outlet.closed
        await turns()
        assert hub.stats().subscribers == 0


async def test_closed_outlets_are_not_subscribed() -> None:
    async with open_hub() as hub:
        outlet = Outlet()
        outlet.close()
        await hub.subscribe(["broadcast"], outlet, encode=encode_line, client_id="me")
        assert hub.stats().subscribers == 0
        assert await hub.presence("broadcast") == []


async def test_counters_match_deliveries() -> None:
    async with open_hub() as hub:
        await listen(hub)
        await listen(hub)
        await hub.publish("broadcast", "x")
        stats = hub.stats()
        assert (stats.subscribers, stats.published, stats.delivered, stats.gaps) == (2, 1, 2, 0)


async def test_subscribers_are_counted_by_transport() -> None:
    async with open_hub() as hub:
        events, socket = Outlet(), Outlet()
        await hub.subscribe(("a",), events, encode=encode_line, transport="events")
        await hub.receive("ann", socket, encode=encode_line, transport="websocket")
        assert hub.stats().transports == {"events": 1, "websocket": 1}
        events.close()
        assert hub.stats().transports == {"events": 0, "websocket": 1}


async def test_unsent_subscriber_bytes_are_reported() -> None:
    async with open_hub() as hub:
        idle, busy = Outlet(takes=False), Outlet()
        for outlet in (idle, busy):
            await hub.subscribe(("a",), outlet, encode=encode_line)
        await hub.publish("a", "x")
        assert hub.queued_bytes() == idle.buffered > 0


async def test_unpushed_events_are_read_after_an_interruption() -> None:
    store = MemoryStore()
    async with open_hub(store) as hub, open_hub(store) as other:
        outlet = await listen(hub)
        await turns()
        tail = hub._delivery.event_tail
        tail.stop()
        await other.publish("broadcast", "1")
        await turns()
        assert outlet.data == []
        tail._interrupt()
        assert await outlet.until(1) == ["1"]
