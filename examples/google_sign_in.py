"""A book shop whose people sign in with Google. Set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET to what Google gave."""

import os

from millstream import Context, Server, auth

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")

# region: server
mcp = Server(
    "Book shop",
    auth=auth.google(URL, allow=["@example.com", "grace@gmail.com"]),
)


@mcp.tool
async def greet(ctx: Context) -> str:
    """Greet the caller."""
    return f"Hello, {ctx.principal.subject if ctx.principal else 'stranger'}!"


# endregion

if __name__ == "__main__":
    mcp.run()
