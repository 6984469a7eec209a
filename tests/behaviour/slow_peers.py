"""A server for `test_sweep.py`: one tool that says a lot, one that is silent."""

import asyncio

from millstream import Context, Server

mcp = Server("slow-peers")


@mcp.tool
async def floods(ctx: Context) -> str:
    """Progress with long messages, for ever."""
    step = 0
    while True:
        step += 1
        await ctx.progress(step, message="x" * 100_000)


@mcp.tool
async def silent() -> str:
    """Says nothing for ever."""
    await asyncio.Event().wait()
    return ""
