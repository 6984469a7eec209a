"""The shop of the pages for those who come from other packages: millstream run examples/coming_from/shop.py"""

# region: server
from millstream import Server

mcp = Server("shop", instructions="Ask for books.")


@mcp.tool
def search(words: str, limit: int = 10) -> list[str]:
    """Find books."""
    return [f"{words}, volume {n + 1}" for n in range(limit)]


# endregion

# region: ask
from dataclasses import dataclass

from millstream import Context


@dataclass
class Address:
    street: str
    city: str


@mcp.tool
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    where = await ctx.elicit("Where to?", Address)
    await ctx.progress(1, 1, "Packed")
    return f"{isbn} goes to {where.city}"


# endregion
