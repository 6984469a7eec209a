"""Tests of the order service in memory. Its calls of other services go to their server objects."""

import asyncio

import order_service
import pytest
import users
from services import HUB, USERS

import hub
from millstream import Client
from millstream.client import ToolFailed

SERVERS = {HUB: hub.mcp, USERS: users.mcp}


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_service, "connect", lambda url: Client(SERVERS[url]))


def place_order(user: str) -> dict[str, str | int]:
    async def talk() -> dict[str, str | int]:
        async with hub.mcp.running(), Client(order_service.mcp) as client:
            order = (await client.call("place_order", user=user, item="tea", copies=2)).data
            assert [event.id for event in await hub.mcp.hub.history("orders.created")] == [order["order"]]
            return dict(order)

    return asyncio.run(talk())


def test_orders_have_the_name_of_the_user() -> None:
    assert place_order("ada")["name"] == "Ada Lovelace"


def test_unknown_users_cannot_order() -> None:
    with pytest.raises(ToolFailed, match="There is no user 'eve'"):
        place_order("eve")
