import asyncio

from millstream import Context, Server

mcp = Server("press")


@mcp.tool(timeout=600)
async def print_books(title: str, ctx: Context, copies: int = 3) -> str:
    """Print copies of a book."""
    for copy in range(1, copies + 1):
        await asyncio.sleep(0.1)  # the real work
        await ctx.progress(copy, copies, f"Copy {copy} is dry")
    return f"{copies} copies of {title} are ready."
