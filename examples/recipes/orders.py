"""A shop where some callers read and some order. Give them keys: ``millstream keys add ada --scope orders:write``."""

from millstream import Context, Server

mcp = Server("bookshop")
ORDERS: list[str] = []


@mcp.tool
def orders() -> list[str]:
    """List the orders of today."""
    return ORDERS


@mcp.tool(scopes=["orders:write"])
async def order(title: str, ctx: Context) -> str:
    """Order a book in the caller's name."""
    who = ctx.principal.subject if ctx.principal else "a guest"
    ORDERS.append(f"{title} for {who}")
    return ORDERS[-1]


if __name__ == "__main__":
    mcp.run()
