import asyncio
import sys

import pytest

import http_peer
from cases import for_each
from extensions.event_shop import OrderPaid, events_of
from millstream import Client, Server
from millstream.client import NotSupported, ServerError
from millstream.extensions.events import Events
from patience import WAIT
from processes import ROOT


def _shop() -> Server:
    shop = Server("shop", serve="hub", extensions=[Events(draft="SEP-3415", poll_pause=0.0)])
    events_of(shop).event("order.paid")(OrderPaid)
    return shop


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


async def test_client_receives_events_over_stdio() -> None:
    async with asyncio.timeout(WAIT), Client([sys.executable, str(ROOT / "examples/events.py")]) as client:
        assert client.revision == "2026-07-28"
        async with client.events.subscribe("order.paid", {"customer": "ada"}) as events:
            for customer in ("bob", "ada"):
                await client.call("pay", order=customer, customer=customer, total=1)
            assert (await anext(events)).data == {"order": "ada", "customer": "ada", "total": 1}
        await client.call("pay", order="late", customer="ada", total=1)
