import asyncio
from typing import Any

import pytest

from cases import for_each
from millstream import Context, Server, SyncContext
from millstream.client import ServerError
from millstream.testing import connect
from wire import PER_REQUEST, POST, per_request, request, routing, run_wire


def make_server() -> Server:
    """Return a server with a tool that returns the `_meta` of its request, and one that reads resources."""
    mcp = Server("inside")

    @mcp.tool
    async def meta(ctx: Context, filler: str = "") -> dict[str, Any]:
        with pytest.raises(TypeError):
            ctx.meta["more"] = 1  # type: ignore[index]  it can't be changed
        return dict(ctx.meta)

    @mcp.tool(timeout=5)
    def slow_meta(ctx: SyncContext, filler: str = "") -> dict[str, Any]:
        return dict(ctx.meta)

    @mcp.prompt
    async def say_meta(ctx: Context) -> str:
        return str(ctx.meta.get("trace"))

    @mcp.resource("book://{isbn}")
    async def book(isbn: str, ctx: Context) -> str:
        return f"{isbn} for {ctx.request_id}"

    @mcp.resource("secret://plan", scopes=["secrets"])
    async def plan() -> str:
        return "the plan"

    @mcp.tool
    async def reads(uri: str, ctx: Context) -> str:
        return f"{await ctx.read_resource(uri)} of {ctx.request_id}"

    @mcp.tool
    def reads_too(uri: str, ctx: SyncContext) -> str:
        return str(ctx.read_resource(uri))

    return mcp


@pytest.mark.parametrize("way", ["asgi", pytest.param("lane", marks=pytest.mark.server)])
@for_each("tool", ["meta", "slow_meta"])
@for_each("filler", ["", "x" * 20_000], ids=["small", "large"])
async def test_request_meta_reaches_the_function_on_every_transport(way: str, tool: str, filler: str) -> None:
    """MCP 2025-11-25, basic."""
    arguments = {"filler": filler}
    async with run_wire(make_server(), way) as wire:
        message = per_request("tools/call", {"name": tool, "arguments": arguments})
        message["params"]["_meta"]["com.example/trace"] = "7"
        newest = (await wire.post(message, routing("tools/call", tool))).message
        session = await wire.initialize()
        params = {"name": tool, "arguments": arguments, "_meta": {"com.example/trace": "8", "progressToken": 1}}
        older = (await wire.post(request("tools/call", params), session)).message
        nothing = (await wire.post(request("tools/call", {"name": tool, "arguments": arguments}), session)).message
    said = newest["result"]["structuredContent"]
    assert said["com.example/trace"] == "7"
    assert PER_REQUEST in said.values()
    assert older["result"]["structuredContent"] == {"com.example/trace": "8", "progressToken": 1}
    assert nothing["result"]["structuredContent"] == {}


async def test_request_meta_reaches_prompts() -> None:
    async with run_wire(make_server(), "asgi") as wire:
        session = await wire.initialize()
        asked = request("prompts/get", {"name": "say_meta", "_meta": {"trace": "9"}})
        reply = (await wire.post(asked, {**POST, **session})).message
    assert reply["result"]["messages"][0]["content"]["text"] == "9"


@for_each("revision", ["2025-11-25", "2026-07-28"])
async def test_functions_read_resources_within_their_call(revision: str) -> None:
    async with connect(make_server(), revision=revision) as client:
        text = (await client.call("reads", uri="book://1")).text
        inner, outer = text.replace("1 for ", "").split(" of ")
        assert inner == outer
        assert (await client.call("reads_too", uri="book://2")).text.startswith("2 for ")
        with pytest.raises(ServerError, match="not found"):
            await client.call("reads", uri="book://")


async def test_resource_scopes_apply_within_a_call() -> None:
    async with run_wire(make_server(), "asgi") as wire:
        message = per_request("tools/call", {"name": "reads", "arguments": {"uri": "secret://plan"}})
        reply = await wire.post(message, routing("tools/call", "reads"))
    assert reply.status == 403
    assert "needs the scope secrets" in reply.message["error"]["message"]


async def test_question_in_a_task_is_answered_after_the_task_is_shown() -> None:
    mcp = Server("shop")
    shown: list[str] = []

    @mcp.tool
    async def greet(ctx: Context) -> str:
        """Greet."""
        question = asyncio.create_task(ctx.elicit("What's your name?", str))
        shown.append(repr(question))  # as asyncio logs slow tasks
        return f"Hello, {await question}!"

    async with connect(mcp, elicit=lambda question: {"value": "Ada"}) as client:
        assert (await client.call("greet")).text == "Hello, Ada!"
    assert "elicit" in shown[0]
