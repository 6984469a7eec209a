"""Arguments in headers: https://modelcontextprotocol.io/specification/2026-07-28/server/tools#x-mcp-header."""

import json

from client.misbehaving_servers import DONE, ReceivedRequest, misbehaving, with_discovery
from millstream import Client

SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "fast": {"type": "boolean", "x-mcp-header": "Fast"},
    },
}
BROKEN = {"type": "object", "properties": {"a": {"type": "object", "x-mcp-header": "A"}}}


async def behave(asked: ReceivedRequest) -> None:
    """Serve a tool with a required header, which the client only learns from the tool list."""
    if asked.method == "tools/list":
        tools = [{"name": "x", "inputSchema": SCHEMA}, {"name": "broken", "inputSchema": BROKEN}]
        await asked.result({"tools": tools, "ttlMs": 0, "cacheScope": "private"})
    elif "mcp-param-region" not in asked.headers:
        error = {"code": -32020, "message": "Header mismatch"}
        body = {"jsonrpc": "2.0", "id": asked.message["id"], "error": error}
        await asked.reply(json.dumps(body).encode(), status="400 Bad Request")
    else:
        await asked.result(DONE)


async def test_calls_missing_a_parameter_header_are_repeated() -> None:
    async with misbehaving(with_discovery(behave)) as server, Client(server.url) as client:
        for _ in (1, 2):
            assert (await client.call("x", region=" Zürich", count=3, fast=True)).text == "done"
        assert [each.method for each in server.requests][1:] == [
            "tools/call",
            "tools/list",
            "tools/call",
            "tools/call",
        ]
        last = server.requests[-1].headers
        assert last["mcp-param-region"] == "=?base64?IFrDvHJpY2g=?="
        assert (last["mcp-param-count"], last["mcp-param-fast"]) == ("3", "true")
        assert last["mcp-name"] == "x"


async def test_tools_with_invalid_header_annotations_are_dropped() -> None:
    async with misbehaving(with_discovery(behave)) as server, Client(server.url) as client:
        assert [tool.name for tool in await client.tools()] == ["x"]
