"""A tool that takes its time, and says how far it is."""

# region: progress
import asyncio
from collections.abc import AsyncIterator

from millstream import Context, Server

mcp = Server("slow")


@mcp.tool
async def long_task(ctx: Context, steps: int = 5) -> str:
    """Work for a while and report every step."""
    for step in range(1, steps + 1):
        await asyncio.sleep(0.1)
        await ctx.progress(step, steps, f"Step {step} of {steps}")
    return f"Done in {steps} steps."


# endregion


# region: generator
@mcp.tool
async def count_down(start: int = 3) -> AsyncIterator[str]:
    """Each value is a progress message, and the last one is the result, too."""
    for number in range(start, 0, -1):
        yield f"{number} …"
    yield "Lift-off!"


# endregion

if __name__ == "__main__":
    mcp.run()
