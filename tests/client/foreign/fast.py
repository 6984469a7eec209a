"""A server with fastmcp: fast.py (stdio|http|sse) [PORT]."""

import sys

import keep_alive
from fastmcp import Context, FastMCP

keep_alive.install()

mcp = FastMCP("foreign")


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool
async def count(steps: int, ctx: Context) -> str:
    """Report each step."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "counted"


@mcp.resource("note://one")
def note() -> str:
    """A note."""
    return "noted"


@mcp.prompt
def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


if sys.argv[1] == "stdio":
    mcp.run("stdio", show_banner=False, log_level="ERROR")
else:
    mcp.run(sys.argv[1], port=int(sys.argv[2]), show_banner=False, log_level="ERROR")
