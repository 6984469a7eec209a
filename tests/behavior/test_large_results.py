import re

from bad_input.shop import make_shop
from cases import for_each
from millstream import Context, Server
from millstream._stores.memory.log import MemoryLog
from wire import Wire, request, run_wire

ROOM = 20_000


def make_server() -> Server:
    """Return a server with a result larger than the log."""
    mcp = make_shop()

    @mcp.tool
    async def large(ctx: Context) -> str:
        """Open the stream, then return the result."""
        await ctx.progress(1)
        return "x" * ROOM

    return mcp


def narrow(wire: Wire) -> None:
    """Make the log smaller than the result."""
    store = wire.runtime.services.store
    store.log = MemoryLog(wire.runtime.sweep.clock, ROOM, store.epoch)  # type: ignore[misc]


@for_each("way", ["lane", "asgi"])
async def test_result_larger_than_the_event_log_arrives_but_cannot_be_resumed(way: str) -> None:
    async with run_wire(make_server(), way) as wire:
        narrow(wire)
        headers = await wire.initialize()
        call = {"name": "large", "_meta": {"progressToken": 1}}
        reply = await wire.post(request("tools/call", call, 5), headers)
        assert reply.status == 200
        assert reply.messages[-1]["result"]["content"][0]["text"] == "x" * ROOM
        first = re.findall(rb"^id: ?(\S+)", reply.body, re.MULTILINE)[0].decode()
        resumed = await wire.ask("GET", "/mcp", {**headers, "accept": "text/event-stream", "last-event-id": first})
        assert [message.get("method", message.get("id")) for message in resumed.messages] == [
            "notifications/progress",
            5,
        ]
        assert resumed.messages[-1]["error"]["code"] == -32603
