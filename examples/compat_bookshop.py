"""A program for version 1 of the official SDK, with changed imports: ``python compat_bookshop.py``."""

from millstream.compat.fastmcp import Context, FastMCP

mcp = FastMCP("bookshop")


@mcp.tool()
async def price(isbn: str, ctx: Context) -> float:
    """Return the price of a book."""
    await ctx.info(f"Looking up {isbn}")
    return 9.99 if isbn.startswith("978") else 4.99


if __name__ == "__main__":
    mcp.run()
