"""A book shop that gives out its own tokens: people sign in with a password, and any MCP client connects."""

# region: server
import os

from millstream import Context, Server, auth

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")
USERS = os.environ.get("SHOP_USERS", "users.json")

mcp = Server(
    "Book shop",
    auth=auth.issuer(
        URL,
        users=auth.users(file=USERS),
        scope_descriptions={"orders:write": "Order books"},
    ),
)


@mcp.tool
async def greet(ctx: Context) -> str:
    """Greet the caller."""
    return f"Hello, {ctx.principal.subject if ctx.principal else 'stranger'}!"


@mcp.tool(scopes=["orders:write"])
async def order(isbn: str) -> str:
    """Order a book."""
    return f"{isbn} is on its way."


# endregion

if __name__ == "__main__":
    mcp.run()
