import asyncio
from typing import Any

import pytest

from millstream import Client, Context, Server, Settings, SyncContext
from millstream.client import ServerError, ToolFailed
from millstream.testing import connect
from wire import request, run_wire

MAX_STATE = 64 * 1024
"""Maximum size of a session's values, in bytes."""

OLD, NEW = "2025-11-25", "2026-07-28"


def make_server() -> Server:
    """Return a server with tools that set, get, delete, and count values."""
    mcp = Server("keeps")

    @mcp.tool
    async def keep(key: str, value: Any, ctx: Context) -> str:
        await ctx.session_state.set(key, value)
        return "kept"

    @mcp.tool
    async def give(key: str, ctx: Context) -> dict[str, Any]:
        state = ctx.session_state
        return {"value": await state.get(key, "nothing") if state else "no session"}

    @mcp.tool
    async def forget(key: str, ctx: Context) -> str:
        await ctx.session_state.delete(key)
        return "forgotten"

    @mcp.tool
    async def add(ctx: Context) -> int:
        count: int = await ctx.session_state.update("count", lambda n: n + 1, 0)
        return count

    @mcp.tool
    def in_thread(ctx: SyncContext) -> list[Any]:
        state = ctx.session_state
        if not state:
            return []
        state.set("a", [1])
        state.set("b", 2)
        state.delete("b")
        return [state.get("a"), state.get("b", "gone"), state.update("n", lambda n: n + 1, 6)]

    return mcp


async def value(client: Client, key: str) -> Any:
    """Return the stored value of a name."""
    return (await client.call("give", key=key)).data["value"]


async def test_session_state_is_visible_only_in_its_session() -> None:
    server = make_server()
    async with Client(server, revision=OLD) as one, Client(server, revision=OLD) as other:
        await one.call("keep", key="cart", value={"books": ["Dune"], "n": 1})
        assert await value(one, "cart") == {"books": ["Dune"], "n": 1}
        assert await value(other, "cart") == "nothing"
        await one.call("forget", key="cart")
        await one.call("forget", key="never there")
        assert await value(one, "cart") == "nothing"


async def test_concurrent_state_changes_are_all_kept() -> None:
    async with Client(make_server(), revision=OLD) as client:
        counts = await asyncio.gather(*(client.call("add", result_type=int) for _ in range(30)))
        assert sorted(counts) == list(range(1, 31))


async def test_session_state_works_from_threads() -> None:
    async with Client(make_server(), revision=OLD) as client:
        assert (await client.call("in_thread")).data == {"result": [[1], "gone", 7]}


async def test_calls_without_a_session_have_no_state() -> None:
    async with Client(make_server(), revision=NEW) as client:
        assert await value(client, "cart") == "no session"
        assert (await client.call("in_thread")).data == []
        for tool, arguments in (("keep", {"key": "a", "value": 1}), ("forget", {"key": "a"}), ("add", {})):
            with pytest.raises(ToolFailed, match="This client has no session"):
                await client.call(tool, arguments)


async def test_session_state_is_bounded() -> None:
    async with Client(make_server(), revision=OLD) as client:
        await client.call("keep", key="small", value="x")
        with pytest.raises(ServerError):
            await client.call("keep", key="large", value="x" * MAX_STATE)
        assert await value(client, "small") == "x"
        assert await value(client, "large") == "nothing"


async def test_ended_sessions_lose_their_state() -> None:
    server = make_server()
    async with run_wire(server, "asgi") as wire:
        headers = await wire.initialize()
        keep = request("tools/call", {"name": "keep", "arguments": {"key": "a", "value": "secret"}})
        assert (await wire.post(keep, headers)).status == 200
        assert wire.runtime.services is not None
        kv = wire.runtime.services.store.kv
        assert [b"secret" in (await kv.get(key) or b"") for key in await kv.keys("session:")] == [True]
        assert (await wire.ask("DELETE", "/mcp", headers)).status in (200, 204)
        assert [b"secret" in (await kv.get(key) or b"") for key in await kv.keys("session:")] == [False]


async def test_a_session_can_subscribe_to_a_limited_number_of_resources() -> None:
    mcp = Server("shelf", settings=Settings(max_subscriptions=2))

    @mcp.resource("book://{isbn}")
    def book(isbn: str) -> str:
        return isbn

    async with connect(mcp, revision="2025-11-25") as client:
        for isbn in "ab":
            await client.request("resources/subscribe", {"uri": f"book://{isbn}"})
        with pytest.raises(ServerError, match="Too many subscriptions in this session"):
            await client.request("resources/subscribe", {"uri": "book://c"})
        await client.request("resources/unsubscribe", {"uri": "book://a"})
        await client.request("resources/subscribe", {"uri": "book://c"})
