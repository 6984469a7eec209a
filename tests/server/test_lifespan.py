"""Lifespans are entered and exited in one task, and a failure while the server runs is reported."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from app_peer import ask
from millstream import Client, Server
from millstream.testing import connect

TOTAL = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "total", "arguments": {}}}'


async def test_anyio_task_group_stays_open_while_the_server_runs() -> None:
    ended: list[str] = []

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()
        ended.append(server.name)

    mcp = Server("shop", lifespan=lifespan)
    for _ in range(2):
        async with mcp.running():
            pass
    assert ended == ["shop", "shop"]


@pytest.mark.parametrize("mounted", [False, True])
async def test_failed_lifespan_task_is_logged_and_makes_the_server_unhealthy(
    mounted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    odd = asyncio.Event()

    async def consume() -> None:
        await odd.wait()
        raise KeyError("an odd event")

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(consume())
            yield
            task.cancel()

    mcp = Server("shop", lifespan=lifespan)
    if mounted:
        outer = Server("mall")
        outer.mount(mcp, "shop")
        mcp = outer
    async with mcp.running():
        assert (await ask(mcp, "GET", "/readyz")).body == b"ok\n"
        odd.set()
        while not (errors := [each for each in caplog.records if each.levelno == logging.ERROR]):  # noqa: ASYNC110
            await asyncio.sleep(0)
        health = await ask(mcp, "GET", "/health")
        assert health.status == 503
        assert json.loads(health.body)["reasons"] == ["the lifespan ended with an error"]
        assert (await ask(mcp, "GET", "/readyz")).body == b"degraded: the lifespan ended with an error\n"
    [record] = errors
    assert "ended while the server was running" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert str(record.exc_info[1].exceptions[0]) == "'an odd event'"


@pytest.fixture
def events() -> list[str]:
    """What happened to the lifespan of `shop`, in order."""
    return []


@pytest.fixture
def shop(events: list[str]) -> Server:
    """A server whose tool calls another tool of the same server."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        events.append("opened")
        yield
        events.append("closed")

    mcp = Server("shop", lifespan=lifespan)

    @mcp.tool
    async def price() -> int:
        return 3

    @mcp.tool
    async def total() -> int:
        async with Client(mcp) as client:
            return 2 * int((await client.call("price")).text)

    return mcp


async def test_server_stays_open_until_its_last_client_leaves(shop: Server, events: list[str]) -> None:
    async with connect(shop, principal="ada") as ada:
        async with connect(shop, principal="bob") as bob:
            assert (await bob.call("price")).text == "3"
        assert (await ada.call("total")).text == "6"
        assert events == ["opened"]
    assert events == ["opened", "closed"]


async def test_first_of_two_concurrent_clients_closes_nothing(shop: Server, events: list[str]) -> None:
    left = asyncio.Event()

    async def leave() -> None:
        async with Client(shop):
            pass
        left.set()

    async def stay() -> None:
        async with Client(shop) as client:
            await left.wait()
            assert (await client.call("price")).text == "3"
            assert events == ["opened"]

    await asyncio.gather(leave(), stay())
    assert events == ["opened", "closed"]


async def test_tool_that_uses_a_client_of_its_server_does_not_stop_it(shop: Server, events: list[str]) -> None:
    await shop.start(supervised=True)
    for _ in range(2):
        reply = await ask(shop, "POST", "/mcp", TOTAL, content_type="application/json")
        assert json.loads(reply.body)["result"]["content"][0]["text"] == "6"
    assert events == ["opened"]
    await shop.stop()
    assert events == ["opened", "closed"]


def slow_server(events: list[str], opening: asyncio.Event, ready: asyncio.Event) -> Server:
    """Return a server whose lifespan sets one event, waits for the other, and records when it has closed."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        opening.set()
        await ready.wait()
        yield
        events.append("closed")

    return Server("shop", lifespan=lifespan)


async def test_client_that_gives_up_while_the_server_starts_leaves_it_to_the_next(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()
    mcp = slow_server(events, opening, ready)
    impatient = asyncio.create_task(Client(mcp).__aenter__())
    await opening.wait()
    impatient.cancel()
    await asyncio.wait([impatient])
    ready.set()
    async with Client(mcp):
        assert events == []
    assert events == ["closed"]


async def test_host_lifespan_closes_a_server_that_a_publication_opened(events: list[str]) -> None:
    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        yield
        events.append("closed")

    mcp = Server("shop", serve="hub", lifespan=lifespan)
    await mcp.hub.publish("news", {"n": 1})
    async with mcp.lifespan():
        async with Client(mcp):
            pass
        assert events == []
    assert events == ["closed"]


async def test_server_that_is_started_while_a_client_is_open_outlives_the_client(
    shop: Server, events: list[str]
) -> None:
    async with Client(shop):
        await shop.start(supervised=True)
    assert events == ["opened"]
    await shop.stop()
    assert events == ["opened", "closed"]


async def test_canceled_start_does_not_hand_the_server_of_another_starter_to_its_clients(events: list[str]) -> None:
    opening, ready = asyncio.Event(), asyncio.Event()
    mcp = slow_server(events, opening, ready)
    canceled, other = (asyncio.create_task(mcp.start(supervised=True)) for _ in range(2))
    await opening.wait()
    canceled.cancel()
    await asyncio.wait([canceled])
    ready.set()
    await other
    async with Client(mcp):
        pass
    assert events == []
    await mcp.stop()
    assert events == ["closed"]
