"""Events by poll and stream, tested with a client that follows only SEP-3415."""

import asyncio
import json
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from msgspec import Struct
from msgspec.structs import replace

from cases import for_each
from extensions.event_shop import ADA, BOB, Audited, OrderPaid, Refunded, RpcError, events_of, make_shop, run_shop
from extensions.receiver import run_receiver
from http_peer import SocketListener, prepare
from millstream import Client, Server, Settings
from millstream._override import override
from millstream.extensions import LocalError
from millstream.extensions.events import Events
from millstream.extensions.events._catalog import EventType
from millstream.hub import Hub, Subscription
from millstream.stores import StoreUnavailable
from patience import WAIT
from wire import FakeTransport, encode_headers, encode_request, per_request, routing


class Secret(Struct):
    """An event for auditors."""

    text: str


class Sent(Struct):
    """An order was sent."""

    order: str


class NotedAgain(Struct):
    """A new type of note."""

    order: str


async def test_list_contains_only_visible_events() -> None:
    async with run_shop(make_shop(webhooks=False)) as world:
        listed = await world.client(ADA).request("events/list")
        assert listed["resultType"] == "complete"
        assert [each["name"] for each in listed["events"]] == [
            "audit.noted",
            "order.noted",
            "order.paid",
            "order.refunded",
        ]
        paid = listed["events"][2]
        assert paid["description"] == "A customer paid an order."
        assert paid["delivery"] == ["poll", "push"]
        assert paid["payloadSchema"]["required"] == ["order"]
        assert set(paid["inputSchema"]["properties"]) == {"order", "customer", "total"}
        bob = world.client(BOB)
        names = [each["name"] for each in (await bob.request("events/list"))["events"]]
        assert names == ["order.noted", "order.paid", "order.refunded"]
        with pytest.raises(RpcError) as hidden:
            await bob.request("events/poll", name="audit.noted")
        assert (hidden.value.code, hidden.value.data) == (-32023, {"kind": "event"})
        capabilities = (await bob.request("server/discover"))["capabilities"]
        assert capabilities["extensions"]["io.modelcontextprotocol/events"] == {"listChanged": True}
        assert capabilities["events"] == {}


async def test_event_methods_check_the_name_header() -> None:
    async with run_shop(make_shop(private_callbacks=True)) as world:
        client = world.client()
        delivery = {"mode": "webhook", "url": "https://localhost:1/", "secret": "whsec_" + "a" * 44}
        for method in ("events/poll", "events/stream", "events/subscribe", "events/unsubscribe"):
            client.names = {method: "order.refunded"}
            with pytest.raises(RpcError) as refused:
                await client.request(method, name="order.paid", delivery=delivery)
            assert refused.value.code == -32020, method
        for name in ({}, {"events/poll": "order.paid"}):  # clients of earlier drafts don't send it
            client.names = name
            assert (await client.request("events/poll", name="order.paid"))["events"] == []


async def test_clients_follow_changes_to_the_list_of_events(tmp_path: Path) -> None:
    async with (
        run_receiver(tmp_path) as receiver,
        run_shop(make_shop(private_callbacks=True, tls=receiver.tls)) as world,
        world.client(ADA).stream("subscriptions/listen", notifications={"eventsListChanged": True}) as auditor,
        world.client(BOB).stream("subscriptions/listen", notifications={"eventsListChanged": True}) as other,
        world.client(BOB).stream("subscriptions/listen", notifications={"eventsListChanged": "yes"}) as wrong,
        world.client(ADA).stream(name="order.noted") as stream,
    ):
        for messages in (auditor, other):
            acknowledged = await anext(messages)
            assert acknowledged["params"]["notifications"] == {"eventsListChanged": True}
        assert (await anext(wrong))["params"]["notifications"] == {}
        assert (await anext(stream))["method"] == "notifications/events/active"
        world.events.event("secret.noted", scopes=["audit"])(Secret)
        world.events.event("order.sent")(Sent)
        for messages, count in ((auditor, 2), (other, 1)):  # only auditors can see the first one
            for _ in range(count):
                changed = await anext(messages)
                assert changed["method"] == "notifications/events/list_changed"
                assert "io.modelcontextprotocol/subscriptionId" in changed["params"]["_meta"]
        client = world.client(BOB)
        names = [each["name"] for each in (await client.request("events/list"))["events"]]
        assert names == ["order.noted", "order.paid", "order.refunded", "order.sent"]
        await client.subscribe(receiver.url(), receiver.secret(), "order.sent")
        await client.subscribe(receiver.url(), receiver.secret(), "order.noted")
        await world.events.publish(Sent("7"))
        (sent,) = await receiver.wait_for_messages(1)
        assert sent.data["name"] == "order.sent"
        world.events.remove("order.noted")
        assert (await anext(other))["method"] == "notifications/events/list_changed"
        ended = await anext(stream)
        assert ended["method"] == "notifications/events/terminated"
        assert ended["params"]["error"]["code"] == -32023
        assert "result" in await anext(stream)
        _, terminated = await receiver.wait_for_messages(2)
        assert terminated.data["type"] == "terminated"
        assert terminated.data["error"]["data"] == {"kind": "event"}
        with pytest.raises(RpcError) as gone:
            await client.request("events/poll", name="order.noted")
        assert gone.value.data == {"kind": "event"}
        world.events.event("order.noted")(NotedAgain)
        with pytest.raises(RpcError) as unknown:
            await client.request("events/unsubscribe", name="order.noted", delivery={"url": receiver.url()})
        assert unknown.value.data == {"kind": "subscription"}
        await client.subscribe(receiver.url(), receiver.secret(), "order.noted")
        await world.events.publish(NotedAgain("8"))
        assert (await receiver.wait_for_messages(3))[2].data["data"] == {"order": "8"}
        with pytest.raises(LocalError, match="No event is declared"):
            world.events.remove("order.lost")
        await world.shop.stop()
        methods = [each.get("method", "result") async for each in other]
        assert methods == ["notifications/events/list_changed", "result"]  # of the new order.noted


async def test_polls_return_each_event_once() -> None:
    async with run_shop(make_shop(webhooks=False)) as world:
        client = world.client()
        first = await client.request("events/poll", name="order.paid")
        assert (first["events"], first["truncated"], first["hasMore"]) == ([], False, False)
        for number in range(5):
            await world.events.publish(OrderPaid(str(number)))
        await world.shop.hub.publish("order.paid", {"order": 7})  # doesn't match the payload
        await world.shop.hub.publish("order.paid", {"order": "hub"}, id="upstream-1")
        seen: list[dict[str, Any]] = []
        cursor, more = first["cursor"], True
        while more:
            page = await client.request("events/poll", name="order.paid", cursor=cursor, maxEvents=2)
            assert len(page["events"]) <= 2
            assert not page["truncated"]
            seen += page["events"]
            cursor, more = page["cursor"], page["hasMore"]
        assert [each["data"]["order"] for each in seen] == ["0", "1", "2", "3", "4", "hub"]
        assert len({each["eventId"] for each in seen}) == 6
        assert seen[-1]["eventId"] == "upstream-1"
        assert "cursor" not in seen[0]
        again = await client.request("events/poll", name="order.paid", cursor=cursor)
        assert (again["events"], again["cursor"]) == ([], cursor)


async def test_arguments_filter_events() -> None:
    async with run_shop(make_shop(webhooks=False)) as world:
        ada, bob = world.client(ADA), world.client(BOB)
        start = (await ada.request("events/poll", name="order.paid"))["cursor"]
        for customer, total in (("ada", 5.0), ("bob", 6.0), ("ada", 7.0)):
            await world.events.publish(OrderPaid("1", customer, total))
            await world.events.publish(Refunded("1", customer, total))
        chosen = {"name": "order.paid", "arguments": {"customer": "ada", "total": 7}, "cursor": start}
        assert [each["data"]["total"] for each in (await bob.request("events/poll", **chosen))["events"]] == [7]
        own = {"name": "order.refunded", "arguments": {"total": 6.5}, "cursor": start}
        assert [each["data"]["total"] for each in (await ada.request("events/poll", **own))["events"]] == [7]
        assert (await bob.request("events/poll", **own))["events"] == []
        wrongs: list[Any] = [{"color": "red"}, [], "text"]
        for wrong in wrongs:
            with pytest.raises(RpcError) as refused:
                await ada.request("events/poll", name="order.paid", arguments=wrong)
            assert refused.value.code == -32602
        for wrong in {"customer": 5}, {"total": "7"}, {"total": True}:
            with pytest.raises(RpcError, match="must have the type that inputSchema declares") as refused:
                await ada.request("events/poll", name="order.paid", arguments=wrong)
            assert refused.value.code == -32602
        with pytest.raises(RpcError, match="total must be a number"):
            await ada.request("events/poll", name="order.refunded", arguments={"total": "many"})


async def test_expired_cursor_truncates_the_events() -> None:
    async with run_shop(make_shop(webhooks=False)) as world:
        client = world.client()
        await world.events.publish(OrderPaid("1"))
        for lost in ("0123456789ab.1", "nonsense"):
            page = await client.request("events/poll", name="order.paid", cursor=lost)
            assert page["truncated"]
            assert [each["data"]["order"] for each in page["events"]] == ["1"]
            assert not (await client.request("events/poll", name="order.paid", cursor=page["cursor"]))["truncated"]
        late = await client.request("events/poll", name="order.paid", cursor=page["cursor"], maxAgeMs=0)
        assert (late["events"], late["truncated"]) == ([], False)
        await world.events.publish(OrderPaid("2"))
        old = await client.request("events/poll", name="order.paid", cursor=page["cursor"], maxAgeMs=0)
        assert (old["events"], old["truncated"]) == ([], True)


async def test_stream_delivers_published_events() -> None:
    async with run_shop(make_shop(webhooks=False)) as world, asyncio.timeout(WAIT):
        client = world.client()
        start = (await client.request("events/poll", name="order.paid"))["cursor"]
        before = world.shop.hub.stats().subscribers
        await world.events.publish(OrderPaid("1"))
        async with client.stream(name="order.paid", cursor=start) as messages:
            active, first = await anext(messages), await anext(messages)
            await world.events.publish(OrderPaid("2"))
            second = await anext(messages)
            while second["method"] == "notifications/events/heartbeat":
                second = await anext(messages)
        assert active["method"] == "notifications/events/active"
        assert active["params"]["cursor"] == start
        assert active["params"]["truncated"] is False
        assert [each["params"]["data"]["order"] for each in (first, second)] == ["1", "2"]
        ids = {each["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] for each in (active, first, second)}
        assert ids == {2}
        async with client.stream(name="order.paid", cursor=first["params"]["cursor"]) as messages:
            assert (await anext(messages))["params"]["cursor"] == first["params"]["cursor"]
            assert (await anext(messages))["params"]["eventId"] == second["params"]["eventId"]
        async with client.stream(name="order.paid", cursor="gone.1") as messages:
            assert (await anext(messages))["params"]["truncated"] is True
        while world.shop.hub.stats().subscribers > before:  # noqa: ASYNC110  a client that leaves ends it
            await asyncio.sleep(0)


async def test_streams_count_the_events_that_they_accept_as_delivered() -> None:
    async with run_shop(make_shop(webhooks=False)) as world, asyncio.timeout(WAIT):
        client, hub = world.client(), world.shop.hub
        every = client.stream(name="order.paid")
        some = client.stream(name="order.paid", arguments={"customer": "eve"})
        async with every as first, some as second:
            await anext(first)
            await anext(second)
            before = hub.stats().delivered
            await world.events.publish(OrderPaid("1"))
            await anext(first)
            assert hub.stats().delivered == before + 1
            await world.events.publish(OrderPaid("2", "eve"))
            await anext(second)
            assert hub.stats().delivered == before + 3


class Tagged(Struct):
    """An order with fields of several types."""

    order: str
    tags: list[str] = []
    total: float | list[int] | None = None
    place: dict[str, int] = {}


def make_tagged(**settings: Any) -> Server:
    """Return a server with one event type."""
    events = Events(webhooks=False)
    events.event("order.tagged")(Tagged)
    return Server("tagged", serve="hub", extensions=[events], settings=Settings(secret_key="k" * 64, **settings))


async def test_streams_and_polls_accept_the_same_events() -> None:
    filters: list[dict[str, Any]] = [
        {}, {"order": "1"}, {"order": "1", "total": 1}, {"total": 1.0}, {"total": None}, {"tags": ["a"]}, {"tags": []},
        {"place": {"x": 1}}, {"order": "1", "place": {}}, {"order": "gone"},
    ]  # fmt: skip
    sent = [Tagged("1"), Tagged("1", total=1.0), Tagged("2", ["a"], 2.0), Tagged("2", [], 1, {"x": 1}),
            Tagged("1", total=[1]), Tagged("last")]  # fmt: skip
    async with run_shop(make_tagged()) as world, AsyncExitStack() as stack, asyncio.timeout(WAIT):
        client = world.client()
        start = (await client.request("events/poll", name="order.tagged"))["cursor"]
        streams = [await stack.enter_async_context(world.client().stream(name="order.tagged", arguments=each))
                   for each in [*filters, {"order": "last"}]]  # fmt: skip
        for each in streams:
            assert (await anext(each))["method"] == "notifications/events/active"
        for event in sent:
            await world.events.publish(event)
        while (await anext(streams[-1]))["method"] != "notifications/events/event":
            pass
        for chosen, stream in zip(filters, streams, strict=False):
            page = await client.request("events/poll", name="order.tagged", arguments=chosen, cursor=start)
            wanted = [each["eventId"] for each in page["events"]]
            got: list[str] = []
            while len(got) < len(wanted):
                message = await anext(stream)
                got += [message["params"]["eventId"]] if message["method"] == "notifications/events/event" else []
            assert got == wanted, chosen


STREAM_BUFFER = 128 * 1024


class StalledTransport(FakeTransport):
    """A transport whose peer can stop to read."""

    unread = 0

    @override
    def get_write_buffer_size(self) -> int:
        return self.unread


@for_each("limits", [{}, {"max_unread": 30_000}], ids=["of each", "of all"])
async def test_slow_streams_are_disconnected_and_resume_without_loss(limits: dict[str, int]) -> None:
    server = make_tagged(stream_buffer=STREAM_BUFFER)
    events = events_of(server)
    async with server.running() as runtime:
        hub, listener = runtime.hub, SocketListener(prepare(server, runtime))
        assert hub is not None
        hub.limits = replace(hub.limits, **limits)

        async def follow(until: bytes, **params: Any) -> tuple[Any, StalledTransport]:
            protocol, transport = listener.make_protocol(), StalledTransport()
            protocol.connection_made(transport)
            message = per_request("events/stream", {"name": "order.tagged", **params})
            fields = encode_headers(routing("events/stream"))
            protocol.data_received(encode_request("POST", "/mcp", fields, json.dumps(message).encode()))
            await wait_for(transport, until)
            return protocol, transport

        async def wait_for(transport: FakeTransport, data: bytes) -> None:
            async with asyncio.timeout(WAIT):
                while data not in b"".join(transport.written):
                    transport.write_event.clear()
                    await transport.write_event.wait()

        def orders(transport: FakeTransport) -> list[str]:
            return re.findall(r'"order":"(\w+)', b"".join(transport.written).decode())

        slow, transport = await follow(b"events/active")
        quick, other = await follow(b"events/active")
        slow.pause_writing()
        transport.unread = STREAM_BUFFER
        names = [f"{number}{'x' * 10_000}" for number in range(20)]
        for name in names:
            await events.publish(Tagged(name))
            await wait_for(other, name.encode())
        await hub.refresh(read=False)
        assert hub.stats().disconnected == {"slow": 1}
        transport.unread = 0
        slow.resume_writing()
        await wait_for(transport, b"The stream fell behind.")
        before = orders(transport)
        cursor = re.findall(r'"cursor":"([^"]+)"', b"".join(transport.written).decode())[-1]
        again, rest = await follow(names[-1].encode(), cursor=cursor)
        assert before + orders(rest) == orders(other) == names
        assert len(before) < len(names)
        for protocol in (slow, quick, again):
            protocol.connection_lost(None)


async def test_invalid_streams_are_rejected() -> None:
    async with run_shop(make_shop(webhooks=False)) as world:
        for params, code in (({"name": "no"}, -32023), ({"name": "order.paid", "arguments": {"x": 1}}, -32602)):
            async with world.client().stream(**params) as messages:
                with pytest.raises(RpcError) as refused:
                    await anext(messages)
            assert refused.value.code == code


async def test_streams_end_if_the_channel_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(WAIT), run_shop(make_shop(webhooks=False)) as world:

        async def fail(*args: Any, **options: Any) -> Subscription:
            raise StoreUnavailable("The store is down.")

        monkeypatch.setattr(Hub, "follow", fail)
        async with world.client().stream(name="order.paid") as messages:
            assert [each async for each in messages if "result" not in each] == []


async def test_stopping_server_ends_streams_with_a_result() -> None:
    async with run_shop(make_shop(webhooks=False)) as world, asyncio.timeout(WAIT):
        async with world.client().stream(name="order.paid") as messages:
            await anext(messages)
            stopping = asyncio.create_task(world.shop.stop())
            last = [each async for each in messages][-1]
            await stopping
        assert last["result"]["resultType"] == "complete"
        assert last["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == last["id"]


async def test_handshake_clients_can_read_events() -> None:
    mcp = Server("shop", serve="hub")
    events = mcp.extend(Events(recent_events_tool=True))
    events.event("order.paid")(OrderPaid)
    async with Client(mcp, revision="2025-11-25") as client:
        assert client.capabilities["events"] == {}
        (listed,) = (await client.request("events/list"))["events"]
        assert listed["delivery"] == ["poll"]
        start = (await client.request("events/poll", {"name": "order.paid"}))["cursor"]
        for order in ("1", "2", "3"):
            await events.publish(OrderPaid(order), id=f"evt_{order}")
        page = await client.request("events/poll", {"name": "order.paid", "cursor": start})
        assert [each["eventId"] for each in page["events"]] == ["evt_1", "evt_2", "evt_3"]
        newest = (await client.call("get_recent_events", limit=2)).data["events"]
        assert [each["data"]["order"] for each in newest] == ["3", "2"]
        named = await client.call("get_recent_events", event_id="evt_1", event_name="order.paid")
        assert [each["data"]["order"] for each in named.data["events"]] == ["1"]


async def test_errors_for_invalid_event_requests_describe_the_problem() -> None:
    async with run_shop(make_shop(webhooks=False, recent_events_tool=True)) as world:
        client, poll = world.client(), {"name": "order.paid", "cursor": "x.1"}
        for method, params, problem in (
            ("events/list", {"cursor": "nothing"}, "unknown cursor"),
            ("events/poll", {**poll, "maxAgeMs": -1}, "maxAgeMs must be 0 or more"),
            ("events/poll", {**poll, "arguments": [1]}, "arguments must be an object"),
            ("events/poll", {**poll, "arguments": {"order": "x" * 20_000}}, "must not exceed 16384 bytes"),
        ):
            with pytest.raises(RpcError, match=problem) as refused:
                await client.request(method, **params)
            assert refused.value.code == -32602
        for arguments, problem in (
            ({"arguments": {"order": "1"}}, "arguments require event_name"),
            ({"event_name": "nothing"}, "There is no event 'nothing'"),
            ({"event_name": "order.paid", "arguments": {"x": 1}}, "has no field 'x' to filter by"),
        ):
            result = await client.request("tools/call", name="get_recent_events", arguments=arguments)
            assert result["isError"]
            assert problem in result["content"][0]["text"]


async def test_match_function_that_raises_excludes_the_event() -> None:
    mcp = Server("shop", serve="hub")
    events = mcp.extend(Events())
    events.event("order.paid", match=lambda paid, arguments, principal: bool(1 / int(paid.order)))(OrderPaid)
    async with Client(mcp) as client:
        start = (await client.request("events/poll", {"name": "order.paid"}))["cursor"]
        for order in ("1", "0", "2"):
            await events.publish(OrderPaid(order))
        page = await client.request("events/poll", {"name": "order.paid", "cursor": start})
        assert [each["data"]["order"] for each in page["events"]] == ["1", "2"]


async def test_recent_events_contain_only_visible_events() -> None:
    async with run_shop(make_shop(recent_events_tool=True)) as world:
        await world.events.publish(Refunded("1", "ada", 1.0))
        await world.events.publish("audit.noted", {"what": "1"})
        for key, names in ((ADA, ["audit.noted", "order.refunded"]), (BOB, [])):
            result = await world.client(key).request("tools/call", name="get_recent_events", arguments={})
            assert sorted(each["name"] for each in result["structuredContent"]["events"]) == names


async def test_hub_does_not_reveal_hidden_events() -> None:
    async with run_shop(make_shop()) as world:
        url, bob = f"http://127.0.0.1:{world.port}/events", {"authorization": f"Bearer {BOB}"}
        async with httpx2.AsyncClient(timeout=WAIT, trust_env=False) as http:
            for channel in ("audit.noted", "order.refunded", "$presence.audit.noted"):
                refused = await http.get(url, params={"channel": channel}, headers=bob)
                assert refused.status_code == 403, channel
            ada = {"authorization": f"Bearer {ADA}"}
            async with http.stream("GET", url, params={"channel": "audit.noted"}, headers=ada) as allowed:
                assert allowed.status_code == 200
            await world.events.publish(Audited("old"))
            async with http.stream("GET", url, params={"channel": ">", "history": "5"}, headers=bob) as everything:
                await world.events.publish(Audited("new"))
                await world.events.publish(Refunded("1", "ada", 1.0))
                await world.events.publish(OrderPaid("7"))
                async with asyncio.timeout(WAIT):
                    first = await anext(line async for line in everything.aiter_lines() if line.startswith("data: {"))
    assert json.loads(first.removeprefix("data: "))["order"] == "7"


async def test_any_integer_is_accepted_as_an_age() -> None:
    async with run_shop(make_shop()) as world:
        assert (await world.client().request("events/poll", name="order.paid", cursor="1.1", maxAgeMs=10**400))[
            "events"
        ] == []


async def test_mistakes_in_declarations_are_described() -> None:
    events = Events()
    events.event("order.paid")(OrderPaid)
    with pytest.raises(Exception, match="has no server"):
        await events.publish(OrderPaid("1"))
    with pytest.raises(Exception, match="add it to serve="):
        await Server("plain", extensions=[Events()]).start()
    shop = make_shop()
    events = events_of(shop)
    for mistake in (lambda: events.event("order.paid")(OrderPaid), lambda: events.event("x")(OrderPaid)):
        with pytest.raises(ValueError, match="already"):
            mistake()
    with pytest.raises(TypeError, match="must be an object"):
        events.event("count")(int)
    async with run_shop(shop):
        for event, data in (("order.paid", {"order": 1}), ("nothing", {}), (object(), None)):
            with pytest.raises(Exception, match=r"doesn't match|No event"):
                await events.publish(event, data)
        with pytest.raises(Exception, match="more than the limit"):
            await events.publish(OrderPaid("x" * 300_000))


def test_whole_numbers_have_one_spelling_in_the_identity_of_a_subscription() -> None:
    kind = EventType("order.paid", OrderPaid)
    one, other = (kind.read_arguments(raw) for raw in (b'{"total":5,"customer":"a"}', b'{"customer":"a","total":5.0}'))
    assert one.canonical == other.canonical
    assert kind.read_arguments(b'{"total":5.5}').canonical == b'{"total":5.5}'
