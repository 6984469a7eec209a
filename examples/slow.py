"""Tools that take their time, and report how far they are. ``millstream dev slow.py``."""

# region: progress
import asyncio
from collections.abc import AsyncIterator

from millstream import Context, Server

mcp = Server("slow")


@mcp.tool
async def make_tea(ctx: Context, cups: int = 3) -> str:
    """Make several cups of tea."""
    for cup in range(1, cups + 1):
        await asyncio.sleep(0.1)
        await ctx.progress(cup, cups, f"Cup {cup} is ready")
    return f"{cups} cups of tea"


# endregion


# region: generator
@mcp.tool
async def count_down(start: int = 3) -> AsyncIterator[str]:
    """Count down to lift-off."""
    for number in range(start, 0, -1):
        yield f"{number} …"
    yield "Lift-off!"


# endregion

if __name__ == "__main__":
    mcp.run()
