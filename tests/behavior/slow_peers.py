"""A server for `test_sweep.py`: one tool floods its client, one sends nothing."""

import asyncio

from millstream import Context, Server

mcp = Server("slow-peers")


@mcp.tool
async def floods(ctx: Context) -> str:
    """Report progress with long messages, forever."""
    step = 0
    while True:
        step += 1
        await ctx.progress(step, message="x" * 100_000)


@mcp.tool
async def silent() -> str:
    """Wait forever."""
    await asyncio.Event().wait()
    return ""
