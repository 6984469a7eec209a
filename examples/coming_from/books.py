"""The right side of docs/coming-from/fastmcp.md."""

# region: server
from dataclasses import dataclass

from millstream import Context, Declined, Server

mcp = Server("shop")


@dataclass
class Address:
    street: str
    city: str


@mcp.tool
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    try:
        address = await ctx.elicit("Where to?", Address)
    except Declined:
        return "Nothing ordered."
    await ctx.report_progress(1, 1, "Packed")
    return f"{isbn} goes to {address.city}"


# endregion
