"""fastmcp as a peer: `sdk_fastmcp.py (http|stateless|stdio) PORT`, with the same advantages as the official SDK."""

import os
import sys
from collections.abc import Awaitable, Callable

import uvicorn
from fastmcp import FastMCP
from fastmcp.tools import Tool

mcp = FastMCP("bench")


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def another(number: int) -> Callable[[int, int], Awaitable[int]]:
    """A tool of the same shape under another name."""

    async def more(a: int, b: int) -> int:
        return a + b + number

    return more


for number in range(1, int(os.environ.get("BENCH_TOOLS", "1"))):
    mcp.add_tool(
        Tool.from_function(another(number), name=f"add_{number}", description=f"Add two numbers and {number}.")
    )

if sys.argv[1] == "stdio":
    mcp.run("stdio", show_banner=False, log_level="WARNING")
else:
    app = mcp.http_app(json_response=True, stateless_http=sys.argv[1] == "stateless")
    uvicorn.run(
        app, port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning", access_log=False, ws="none"
    )
