"""Resources that clients watch through a gateway."""

import asyncio
import json
import sys
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server import Server as LowLevelServer
from mcp.server.mcpserver import Context
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated
from mcp_types import (
    EmptyResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ResourceTemplate,
    SubscribeRequestParams,
)

from cpu import count_calls
from fleet import until
from millstream import Client, Server
from patience import WAIT
from wire import MemoryPipe, request

URIS = [f"doc://shop/{number}" for number in range(100)]


def make_shop() -> Server:
    mcp = Server("shop")

    @mcp.resource("doc://{number}")
    def doc(number: str) -> str:
        return number

    @mcp.tool
    async def touch(number: str) -> str:
        await mcp.resource_updated(f"doc://{number}")
        return "touched"

    return mcp


def make_gateway() -> tuple[Server, Server]:
    """Return a gateway, and the upstream whose lists change."""
    busy, mcp = Server("busy"), Server("front")
    busy.tool(name="old")(lambda: "old")
    mcp.upstream("shop", make_shop(), start_timeout=WAIT)
    mcp.upstream("busy", busy, start_timeout=WAIT)
    return mcp, busy


async def count_calls_of_a_change(streams: int) -> int:
    """Return the calls of our functions during a change to the tools of one upstream, while others are watched."""
    mcp, busy = make_gateway()
    async with AsyncExitStack() as stack, asyncio.timeout(WAIT):
        client = await stack.enter_async_context(Client(mcp, timeout=WAIT))
        for _ in range(streams):
            await stack.enter_async_context(client.watch(*URIS))
        changes = await stack.enter_async_context(client.watch(tools=True))
        with count_calls() as names:
            busy.tool(name="new")(lambda: "new")
            async for _ in changes:
                if any(each.name == "busy_new" for each in await client.tools(fresh=True)):
                    break
        return len(names)


async def test_changed_tools_do_not_trigger_a_check_of_every_resource() -> None:
    assert await count_calls_of_a_change(20) < 3 * await count_calls_of_a_change(1)


async def test_later_subscriptions_cost_the_gateway_no_more_than_the_first() -> None:
    mcp, _ = make_gateway()
    async with asyncio.timeout(WAIT), mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)

        async def ask(method: str, params: object, number: int) -> None:
            pipe.send(json.dumps(request(method, params, number)).encode())
            assert "result" in json.loads(await pipe.receive())

        await ask("initialize", {"protocolVersion": "2025-11-25", "clientInfo": {"name": "t", "version": "1"}}, 0)

        async def work(first: int, last: int) -> int:
            with count_calls() as names:
                for number in range(first, last):
                    await ask("resources/subscribe", {"uri": f"doc://shop/{number}"}, number)
            return sum(name.startswith("GatewayPart.") for name in names) // (last - first)

        first = await work(1, 11)
        await work(11, 100)
        assert await work(100, 110) < 1.2 * first
        await pipe.close()


async def test_resource_that_an_upstream_offers_later_is_watched() -> None:
    late, mcp = Server("late"), Server("front")
    late.resource("note://first", name="first")(lambda: "text")
    mcp.resource("note://late/second", name="own")(lambda: "this server's own")
    mcp.upstream("late", late, start_timeout=WAIT)
    async with (
        asyncio.timeout(WAIT),
        Client(mcp, timeout=WAIT) as client,
        client.watch("note://late/second") as updates,
        client.watch(resources=True) as changes,
    ):
        mcp.remove_resource("note://late/second")
        late.resource("note://second", name="second")(lambda: "text")
        async for _ in changes:
            if any(each.name == "late_second" for each in await client.resources(fresh=True)):
                break
        updating = asyncio.create_task(update(late, "note://second"))
        assert (await anext(updates)).uri == "note://late/second"
        updating.cancel()


async def update(mcp: Server, uri: str) -> None:
    """Announce updates, because the gateway subscribes in the background."""
    while True:
        await mcp.resource_updated(uri)
        await asyncio.sleep(0.01)


class Listening:
    """A program for the official SDK, with the subscriptions that it serves."""

    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.serve = ListenHandler(self.bus)
        self.listed: list[int] = []
        """Number of URIs in each request."""
        self.open: dict[Any, set[str]] = {}
        self.server = LowLevelServer(
            "listening",
            on_subscriptions_listen=self.listen,
            on_list_resources=self.resources,
            on_list_resource_templates=self.templates,
        )

    async def resources(self, ctx: Any, params: Any) -> Any:
        return ListResourcesResult(resources=[])

    async def templates(self, ctx: Any, params: Any) -> Any:
        return ListResourceTemplatesResult(
            resource_templates=[ResourceTemplate(name="d", uri_template="doc://{number}")]
        )

    async def listen(self, ctx: Any, params: Any) -> Any:
        uris = params.notifications.resource_subscriptions or []
        if not uris:  # for changed lists
            return await self.serve(ctx, params)
        self.listed.append(len(uris))
        self.open[ctx.request_id] = set(map(str, uris))
        try:
            return await self.serve(ctx, params)
        finally:
            del self.open[ctx.request_id]


async def test_each_resource_is_requested_from_the_upstream_at_most_a_few_times() -> None:
    count, program, mcp = 60, Listening(), Server("front")
    mcp.upstream("shop", program.server, start_timeout=WAIT)
    mcp.upstream("other", make_shop(), start_timeout=WAIT)
    async with (
        asyncio.timeout(WAIT),
        Client(mcp, timeout=WAIT, revision="2026-07-28") as client,
        AsyncExitStack() as stack,
    ):
        watches = [await stack.enter_async_context(client.watch(each)) for each in URIS[:count]]
        await until(lambda: set().union(*program.open.values()) == {f"doc://{number}" for number in range(count)})
        assert sum(program.listed) < 8 * count  # each one that's added would ask for all: 30 * count
        assert len(program.open) < 10
        for number in (0, 31, 59):
            await program.bus.publish(ResourceUpdated(uri=f"doc://{number}"))
            assert (await anext(watches[number])).uri == URIS[number]
        asked = len(program.listed)
        await stack.aclose()
        await until(lambda: not program.open)
        assert len(program.listed) - asked < 15


async def serve_subscriptions(ctx: Any, params: Any) -> EmptyResult:
    return EmptyResult()


def make_announcing() -> MCPServer:
    """Return a program that announces an update on subscriptions, in the session that calls, or both."""
    program = MCPServer("announcing")
    lowlevel = program._lowlevel_server
    for method in ("resources/subscribe", "resources/unsubscribe"):
        lowlevel.add_request_handler(method, SubscribeRequestParams, serve_subscriptions)

    @program.resource("doc://{number}")
    def doc(number: str) -> str:  # pyright: ignore[reportUnusedFunction]
        return number

    @program.tool()
    async def touch(uri: str, times: int, where: list[str], ctx: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        for _ in range(times):
            if "subscription" in where:
                await ctx.notify_resource_updated(uri)
            if "session" in where:
                await ctx.session.send_resource_updated(uri)

    return program


async def test_update_that_an_upstream_announces_twice_arrives_once() -> None:
    mcp = Server("front")
    mcp.upstream("far", make_announcing(), start_timeout=WAIT)
    uri, last, other = "doc://far/1", "doc://far/2", "doc://far/3"
    heard = Counter[str]()
    async with (
        asyncio.timeout(WAIT),
        Client(mcp, revision="2025-11-25", timeout=WAIT) as client,
        client.watch(uri, last, other) as changes,
    ):

        async def touch(uri: str, times: int, *where: str) -> None:
            await client.call("far_touch", uri=uri.replace("far/", ""), times=times, where=list(where))

        async def wait_for(uri: str, times: int = 1) -> None:
            while heard[uri] < times:
                heard[(await anext(changes)).uri] += 1

        await touch(uri, 1, "subscription")
        await wait_for(uri)
        await touch(uri, 20, "subscription", "session")
        await touch(last, 1, "subscription")
        await touch(other, 1, "session")  # only there, although the upstream grants each subscription
        await wait_for(last)
        await wait_for(other)
        await wait_for(uri, 21)
    assert heard == {uri: 21, last: 1, other: 1}


async def test_other_calls_run_while_resources_are_compared_with_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a stream subscribes, and when what an upstream offers has changed."""
    turns, compared = count(), dict[str, list[int]]()
    registry: Any = sys.modules["millstream._server.features.registry"].Registry
    reports = registry.reports

    def report(self: Any, caller: Any, uri: str) -> bool:
        compared.setdefault("subscribing", []).append(turn)
        return reports(self, caller, uri)

    turn = 0

    async def take_turns() -> None:
        nonlocal turn
        for turn in turns:  # noqa: B007
            await asyncio.sleep(0)

    mcp, busy = make_gateway()
    busy.resource("doc://old", name="old")(lambda: "old")
    async with asyncio.timeout(WAIT), Client(mcp, timeout=WAIT) as client, AsyncExitStack() as stack:
        monkeypatch.setattr(registry, "reports", report)
        others = asyncio.create_task(take_turns())
        await stack.enter_async_context(client.watch(*URIS[:20]))
        for number in range(20):
            await stack.enter_async_context(client.watch(URIS[number]))
        assert len(set(compared["subscribing"][:20])) == 20
        followed: Any = sys.modules["millstream._gateway.followers"].FollowedResources
        find_sources = followed._find_sources

        def find(self: Any, uris: Any) -> Any:
            compared.setdefault("changing", []).append(turn)
            return find_sources(self, uris)

        monkeypatch.setattr(followed, "_find_sources", find)
        busy.resource("doc://new", name="new")(lambda: "new")
        await until(lambda: len(compared.get("changing", ())) >= 21)
        assert len(set(compared["changing"][:21])) == 21
        others.cancel()
