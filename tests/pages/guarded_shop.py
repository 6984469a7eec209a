"""A shop with its own authorization server, and a tool that requires more than read access."""

import os

from issuing_world import KnownUsers
from millstream import Context, Server, auth

mcp = Server(
    "Book shop",
    serve="all",
    auth=auth.issuer(
        os.environ["SHOP_URL"],
        users=[KnownUsers()],
        scopes=["books:read"],
        scope_descriptions={"books:read": "Look at books", "orders:write": "Order books"},
    ),
)


@mcp.tool
async def who(ctx: Context) -> str:
    """Who asks."""
    return ctx.principal.subject if ctx.principal else "nobody"


@mcp.tool(scopes=["orders:write"])
async def order(title: str, copies: int = 1) -> str:
    """Order a book."""
    return f"{copies} × {title}"
