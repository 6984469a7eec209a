"""A server with the official Python SDK 2.x: official_two.py (stdio|http|sse) [PORT]."""

import sys

import keep_alive
from mcp.server.mcpserver import Context, MCPServer

keep_alive.install()

mcp = MCPServer("foreign", log_level="ERROR")


@mcp.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
async def count(steps: int, ctx: Context) -> str:  # type: ignore[type-arg]
    """Report each step."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "counted"


@mcp.resource("note://one")
def note() -> str:
    """A note."""
    return "noted"


@mcp.prompt()
def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


if sys.argv[1] == "stdio":
    mcp.run("stdio")
elif sys.argv[1] == "sse":
    mcp.run("sse", port=int(sys.argv[2]))
else:
    mcp.run("streamable-http", port=int(sys.argv[2]))
