"""The official Python SDK as a peer: `sdk_python.py (http|stateless|stdio) PORT`.

It uses its fastest configuration: uvloop, httptools, JSON replies instead of event streams, and no access log. With
BENCH_REPLIES=stream, it replies with event streams, its default.
"""

import os
import sys
from collections.abc import Awaitable, Callable

import uvicorn
from mcp.server.mcpserver import MCPServer

mcp = MCPServer("bench", log_level="WARNING")


@mcp.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def another(number: int) -> Callable[[int, int], Awaitable[int]]:
    """A tool of the same shape under another name."""

    async def more(a: int, b: int) -> int:
        return a + b + number

    return more


for number in range(1, int(os.environ.get("BENCH_TOOLS", "1"))):
    mcp.add_tool(another(number), name=f"add_{number}", description=f"Add two numbers and {number}.")

if __name__ != "__main__":
    pass  # `millstream run` serves it
elif sys.argv[1] == "stdio":
    mcp.run("stdio")
else:
    json_replies = os.environ.get("BENCH_REPLIES") != "stream"
    app = mcp.streamable_http_app(json_response=json_replies, stateless_http=sys.argv[1] == "stateless")
    uvicorn.run(
        app, port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning", access_log=False, ws="none"
    )
