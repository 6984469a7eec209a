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

# region: mount
stock = Server("stock")


@stock.tool
def count(isbn: str) -> int:
    """Count what's in stock."""
    return len(isbn)


mcp.mount(stock, prefix="stock")
# endregion

# region: keys
from millstream import auth

safe = Server("safe", auth=auth.keys(named={"ada": ("a-long-key-of-ada", ["books:read"])}))


@safe.tool(scopes=["books:read"])
def books() -> list[str]:
    """List the books."""
    return ["Momo"]


# endregion
