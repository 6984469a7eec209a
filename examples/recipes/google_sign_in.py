"""A bookshop whose staff sign in with Google. Set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET to what Google gave you."""

import os

from millstream import Context, Server, auth

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")

mcp = Server("bookshop", auth=auth.google(URL, allow=["@example.com", "grace@gmail.com"]))


@mcp.tool
async def greet(ctx: Context) -> str:
    """Greet the person who has signed in."""
    return f"Hello, {ctx.principal.claims['name'] if ctx.principal else 'stranger'}!"


if __name__ == "__main__":
    mcp.run()
