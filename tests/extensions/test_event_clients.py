import asyncio
import json
import sys
from typing import Any

import pytest

import http_peer
from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_discovery
from client.watch_parts import wait_until
from extensions.event_shop import OrderPaid, events_of
from millstream import Client, Server
from millstream.client import NotSupported, ServerError
from millstream.client import _events as client_events
from millstream.client import _watches as watching
from millstream.extensions.events import Events
from millstream.protocol import EVENTS
from patience import WAIT
from processes import ROOT


def _shop() -> Server:
    shop = Server("shop", serve="hub", extensions=[Events(poll_pause=0.0)])
    events_of(shop).event("order.paid")(OrderPaid)
    return shop


async def test_server_without_events_is_named_as_the_reason() -> None:
    async with Client(Server("shop"), timeout=WAIT) as client:
        with pytest.raises(ServerError, match="The server doesn't support events"):
            await client.events.list()


@for_each(("revision", "transport"), [("2026-07-28", "http"), ("2026-07-28", "memory"), ("2025-11-25", "http")])
async def test_client_iterates_over_events(revision: str, transport: str) -> None:
    shop = _shop()
    async with http_peer.serve(shop) as served, asyncio.timeout(WAIT):
        target = f"http://127.0.0.1:{served.port}/mcp" if transport == "http" else shop
        async with Client(target, revision=revision) as client:
            (listed,) = await client.events.list()
            assert listed.name == "order.paid"
            assert listed.payload_schema["required"] == ["order"]
            async with client.events.subscribe("order.paid", {"customer": "ada"}) as events:
                for order, customer in (("1", "ada"), ("2", "bob"), ("3", "ada")):
                    await events_of(shop).publish(OrderPaid(order, customer))
                first = await anext(events)
                assert (first.data["order"], first.name) == ("1", "order.paid")
                assert (await anext(events)).data["order"] == "3"
                cursor = events.cursor
            await events_of(shop).publish(OrderPaid("4"))
            async with client.events.subscribe("order.paid", cursor=cursor) as events:
                assert (await anext(events)).data["order"] == "4"
                assert events.gaps == 0
            async with client.events.subscribe("order.paid", cursor="gone.9") as events:
                assert (await anext(events)).data["order"] == "1"
                assert events.gaps == 1
            with pytest.raises(NotSupported, match="no event"):
                async with client.events.subscribe("nothing"):
                    pass
            with pytest.raises(ServerError, match="no field"):
                async with client.events.subscribe("order.paid", {"color": "red"}):
                    pass
        await shop.stop()


async def test_client_declares_the_extension_and_names_the_event() -> None:
    seen: list[tuple[str, str, bool]] = []

    async def behave(asked: ReceivedRequest) -> None:
        capabilities = asked.message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        seen.append((asked.method, asked.headers.get("mcp-name", ""), EVENTS in capabilities.get("extensions", {})))
        await asked.result({"resultType": "complete", "id": "sub_1", "events": [], "cursor": None})

    async with misbehaving(with_discovery(behave)) as world, Client(world.url) as client:
        await client.events.webhook("order.paid", "https://example.com/", "whsec_" + "a" * 44)
        await client.events.remove_webhook("order.paid", "https://example.com/")
        async with client.events.subscribe("order.paid", mode="poll"):
            pass
        await client.request("events/poll", {"name": "order.noted"})
    assert [each for each in seen if each[0].startswith("events/")] == [
        ("events/subscribe", "order.paid", True),
        ("events/unsubscribe", "order.paid", True),
        ("events/poll", "order.paid", True),
        ("events/poll", "order.noted", True),
    ]


async def test_broken_stream_resumes_after_the_last_event() -> None:
    shop = _shop()
    async with http_peer.serve(shop) as served, asyncio.timeout(WAIT):
        url = f"http://127.0.0.1:{served.port}/mcp"
        async with Client(url) as client, client.events.subscribe("order.paid") as events:
            await events_of(shop).publish(OrderPaid("1"))
            assert (await anext(events)).data["order"] == "1"
            for connection in list(served.state.connections):
                connection.transport.abort()
            await events_of(shop).publish(OrderPaid("2"))
            await events_of(shop).publish(OrderPaid("3"))
            assert [(await anext(events)).data["order"] for _ in range(2)] == ["2", "3"]
        await shop.stop()


@pytest.mark.server
async def test_client_receives_events_over_stdio() -> None:
    async with asyncio.timeout(WAIT), Client([sys.executable, str(ROOT / "examples/events.py")]) as client:
        assert client.revision == "2026-07-28"
        async with client.events.subscribe("order.paid", {"customer": "ada"}) as events:
            for customer in ("bob", "ada"):
                await client.call("pay", order=customer, customer=customer, total=1)
            assert (await anext(events)).data == {"order": "ada", "customer": "ada", "total": 1}
        await client.call("pay", order="late", customer="ada", total=1)


async def _events_after(cursor: int, asked: ReceivedRequest, last: int) -> None:
    for number in range(cursor + 1, last + 1):
        event = {"eventId": f"e{number}", "name": "paid", "timestamp": "2026-07-28T00:00:00Z", "cursor": str(number)}
        await asked.event(_note(asked, "event", **event))


def _note(asked: ReceivedRequest, kind: str, **params: Any) -> bytes:
    about = {"_meta": {"io.modelcontextprotocol/subscriptionId": asked.message["id"]}}
    return json.dumps({"jsonrpc": "2.0", "method": f"notifications/events/{kind}", "params": params | about}).encode()


@for_each("why", ["unread", "silent"])
async def test_streams_are_reopened_after_the_last_event_that_arrived(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_events, "_MAX_WAITING", 2)
    monkeypatch.setattr(watching, "_FIRST_WAIT", 0.0)
    cursors: list[str | None] = []

    async def behave(asked: ReceivedRequest) -> None:
        cursor = asked.message["params"]["cursor"]
        cursors.append(cursor)
        await asked.stream()
        await asked.event(_note(asked, "active", cursor=cursor))
        await _events_after(int(cursor or 0), asked, 5 if why == "unread" or cursor else 2)
        await asyncio.get_running_loop().create_future()

    async with (
        asyncio.timeout(WAIT),
        misbehaving(with_discovery(behave)) as server,
        Client(server.url) as client,
        client.events.subscribe("paid", mode="push") as events,
    ):
        await wait_until(lambda: len(events._waiting) == 2)
        if why == "unread":
            await wait_until(lambda: client.conversation.requests.incoming.running == {})
            assert not events._space.is_set(), "it's reopened when they're read"
        else:
            now, silence = asyncio.get_running_loop().time(), events._silence
            assert silence is not None
            assert (silence.when() or 0) > now + 60
            silence.reschedule(now)
        assert [(await anext(events)).event_id for _ in range(5)] == ["e1", "e2", "e3", "e4", "e5"]
        assert events.cursor == "5"
    assert cursors[:2] == [None, "2"]


@for_each("active", [True, False])
async def test_terminated_streams_raise_the_server_error(active: bool) -> None:
    opened = 0

    async def behave(asked: ReceivedRequest) -> None:
        nonlocal opened
        opened += 1
        await asked.stream()
        if active:
            await asked.event(_note(asked, "active", cursor="0"))
            await _events_after(0, asked, 1)
        await asked.event(_note(asked, "terminated", error={"code": -32003, "message": "No longer allowed"}))
        await asyncio.get_running_loop().create_future()

    async def read(client: Client) -> None:
        async with client.events.subscribe("paid", mode="push") as events:
            assert active
            assert (await anext(events)).event_id == "e1"
            await anext(events)

    async with asyncio.timeout(WAIT), misbehaving(with_discovery(behave)) as server, Client(server.url) as client:
        with pytest.raises(ServerError, match=r"No longer allowed \(-32003\)"):
            await read(client)
    assert opened == 1
