"""A server whose calls report to a client's event stream. ``millstream run counter.py``."""

# region: stream
from millstream import Context, Server

mcp = Server("counter", serve=["hub", "rest"])


@mcp.tool
async def count(to: int, ctx: Context, stream: bool = False) -> int:
    """Count to a number. With stream=true, report each step."""
    if stream:
        for number in range(1, to + 1):
            await ctx.progress(number, to, f"Counted {number}")
    return to


# endregion

if __name__ == "__main__":
    mcp.run()
