from collections.abc import AsyncIterator
from typing import Any

import pytest

from cases import for_each
from millstream import Context, Server, SyncContext
from millstream.testing import connect
from wire import Wire, request, run_wire


def make_server() -> Server:
    """Tools that give their arguments to the hub."""
    mcp = Server("rooms", serve="hub")

    @mcp.tool
    async def say(ctx: Context, channel: str, text: str) -> str:
        return str((await ctx.hub.publish(channel, text)).subscribers)

    @mcp.tool
    def shout(ctx: SyncContext, channel: str, text: str) -> dict[str, Any]:
        published = ctx.hub.publish(channel, text.upper(), event="shout")
        ctx.hub.send("ann", "a message")
        held = ctx.hub.history(channel, count=5)
        return {"id": published.id, "held": [event.data.decode() for event in held], "here": ctx.hub.presence(channel)}

    @mcp.tool
    def who(ctx: SyncContext, channel: str) -> int:
        return len(ctx.hub.members(channel).members)

    return mcp


async def test_programs_and_tools_list_the_members_of_a_channel() -> None:
    mcp = make_server()
    assert (await mcp.hub.members("chat")).members == []
    async with connect(mcp) as client:
        assert (await client.call("who", channel="chat")).data == 0


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """The server, in this process."""
    async with run_wire(make_server(), "asgi") as wire:
        yield wire


async def call(wire: Wire, name: str, **arguments: Any) -> Any:
    """The result of a tool."""
    headers = await wire.initialize()
    reply = await wire.post(request("tools/call", {"name": name, "arguments": arguments}, 5), headers)
    assert reply.status == 200
    return reply.message["result"]


async def test_def_tools_publish_synchronously(wire: Wire) -> None:
    result = (await call(wire, "shout", channel="chat", text="hello"))["structuredContent"]
    assert result["held"] == ["HELLO"]
    assert result["here"] == []
    assert result["id"]
    hub = wire.runtime.hub
    assert hub is not None
    assert [event.data for event in await hub.history("$client.ann")] == [b"a message"]


@for_each("name", ["say", "shout"])
@for_each(
    ("channel", "text", "message"),
    [
        ("a b", "x", "channel"),
        ("$client.victim", "x", "You aren't allowed to publish to channel '$client.victim'."),
        ("chat", "x" * 300_000, "An event must have at most 262144 bytes, not 300000."),
    ],
    ids=["name", "forbidden", "large"],
)
async def test_hub_rejections_are_reported_to_the_caller(
    wire: Wire, name: str, channel: str, text: str, message: str
) -> None:
    result = await call(wire, name, channel=channel, text=text)
    assert result["isError"] is True
    assert message in result["content"][0]["text"]
