"""The server of the chaos runs: a hub, a fast tool, a slow one, and a store from the environment."""

import asyncio
import os

from millstream import Context, Server

mcp = Server("chaos", store=os.environ.get("CHAOS_STORE", "memory://"), serve="hub")


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool
async def publish(channel: str, data: str) -> str:
    """Publish an event, and return its id."""
    return (await mcp.hub.publish(channel, data)).id


@mcp.tool
async def slow(seconds: float, ctx: Context) -> str:
    """Take some time, and report progress now and then."""
    for step in range(10):
        await ctx.progress(step, 10)
        await asyncio.sleep(seconds / 10)
    return "done"
