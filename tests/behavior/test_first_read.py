import asyncio
import json
from typing import Any

from bad_input.shop import make_shop
from millstream import Context
from wire import LATEST_HANDSHAKE, WAIT, open_pipe, request


async def test_requests_sent_with_initialize_use_its_session() -> None:
    mcp = make_shop()

    @mcp.tool
    async def spoken(ctx: Context) -> str:
        """Return the revision of the call."""
        return ctx.revision

    opening = {
        "protocolVersion": LATEST_HANDSHAKE,
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = open_pipe(runtime)
        for message in (
            request("initialize", opening, 1),
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            request("tools/call", {"name": "spoken"}, 2),
            request("resources/subscribe", {"uri": "shop://sign"}, 3),
            request("initialize", {**opening, "clientInfo": {"name": "u", "version": "1"}}, 4),
        ):
            pipe.send(json.dumps(message).encode())
        answers: dict[Any, Any] = {}
        while len(answers) < 4:
            answer = json.loads(await pipe.receive())
            answers[answer["id"]] = answer
        assert next(iter(answers)) == 1
        assert answers[2]["result"]["content"][0]["text"] == LATEST_HANDSHAKE
        assert answers[3]["result"] == {}
        assert answers[4]["error"]["code"] == -32600
        mcp.remove_tool("spoken")
        assert json.loads(await pipe.receive())["method"] == "notifications/tools/list_changed"
        await pipe.close()
