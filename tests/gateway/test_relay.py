"""A server of another library behind Millstream, as its clients see it. The servers are those of the official SDK."""

import asyncio
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from millstream import Client, Server
from patience import WAIT

ERAS = ("2025-06-18", "2026-07-28")
ABLE: dict[str, Any] = {"elicit": lambda question: {}}  # so that the upstream has a session for the client


def growing() -> MCPServer:
    """A program whose tools add tools, and say so or not."""
    program = MCPServer("books")

    @program.tool()
    async def grow(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        program.add_tool(lambda: "x", name="announced")
        await ctx.session.send_tool_list_changed()
        return "grown"

    @program.tool()
    async def grow_silently() -> str:  # pyright: ignore[reportUnusedFunction]
        program.add_tool(lambda: "x", name="silent")
        return "grown"

    @program.resource("book://{isbn}")
    def book(isbn: str) -> str:  # pyright: ignore[reportUnusedFunction]
        return isbn

    @program.tool()
    async def touch(ctx: Context) -> str:  # pyright: ignore[reportUnusedFunction]
        await ctx.session.send_resource_updated("book://1")
        return "touched"

    return program


def catalog(*programs: Any) -> Server:
    """A gateway with prefixes."""
    gateway = Server("gateway")
    for number, program in enumerate(programs or (growing(), growing())):
        gateway.upstream("ab"[number], program)
    return gateway


async def names(client: Client) -> list[str]:
    return [tool.name async for tool in client.tools(fresh=True)]


async def listed(client: Client, name: str) -> None:
    """Wait until a tool is listed. A catalog asks its upstreams once a second."""
    async with asyncio.timeout(WAIT):
        while name not in await names(client):
            pass


@pytest.mark.parametrize("era", ERAS)
async def test_announced_tool_of_a_program_behind_a_prefix_is_listed_and_callable(era: str) -> None:
    async with Client(catalog(), revision=era) as client:
        await client.call("a_grow")
        await listed(client, "a_announced")
        assert (await client.call("a_announced")).text == "x"


async def test_tool_that_a_program_adds_silently_is_listed_when_a_client_asks() -> None:
    async with Client(catalog(), revision=ERAS[0]) as client:
        assert "a_silent" not in await names(client)
        await client.call("a_grow_silently")
        await listed(client, "a_silent")


async def test_clients_do_not_cache_the_lists_of_a_program() -> None:
    async with Client(catalog(), revision=ERAS[1]) as client:
        assert (await client.request("tools/list"))["ttlMs"] == 0


async def test_clients_are_notified_of_an_announced_change() -> None:
    changes: asyncio.Queue[str] = asyncio.Queue()
    async with Client(
        catalog(), revision=ERAS[0], on_change=lambda each: changes.put_nowait(each.kind), **ABLE
    ) as client:
        await client.call("a_grow")
        async with asyncio.timeout(WAIT):
            assert await changes.get() == "tools"


async def test_update_announced_in_a_call_reaches_only_the_session_that_called() -> None:
    seen: dict[str, list[str]] = {"caller": [], "other": []}
    arrived = asyncio.Event()
    gateway = catalog()

    def note(who: str, uri: str) -> None:
        seen[who].append(uri)
        arrived.set()

    async with (
        Client(gateway, revision=ERAS[0], on_change=lambda change: note("caller", change.uri), **ABLE) as caller,
        Client(gateway, revision=ERAS[0], on_change=lambda change: note("other", change.uri), **ABLE) as other,
    ):
        for client in (caller, other):
            await client.request("resources/subscribe", {"uri": "book://a/1"})
        await caller.call("a_touch")
        async with asyncio.timeout(WAIT):
            await arrived.wait()
        await other.call("b_grow_silently")  # anything for it would have come before
    assert seen == {"caller": ["book://a/1"], "other": []}
