"""Tools that take their time, and report how far they are. ``millstream dev slow.py``."""

# region: progress
import asyncio
from collections.abc import AsyncIterator

from millstream import Context, Server

mcp = Server("bookshop")


@mcp.tool
async def pack(ctx: Context, copies: int = 3) -> str:
    """Pack several copies of a book."""
    for copy in range(1, copies + 1):
        await asyncio.sleep(0.1)
        await ctx.progress(copy, copies, f"Copy {copy} is packed")
    return f"{copies} copies are packed"


# endregion


# region: generator
@mcp.tool
async def send(copies: int = 2) -> AsyncIterator[str]:
    """Send several copies of a book."""
    for copy in range(1, copies + 1):
        yield f"Copy {copy} is on its way"
    yield "All copies are on their way"


# endregion

if __name__ == "__main__":
    mcp.run()
