"""A book shop whose people sign in in several ways, some of whom may order."""

import os

from millstream import Context, Server, auth

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")
LOGIN = os.environ.get("LOGIN", "https://login.example.com")

# region: server
mcp = Server(
    "Book shop",
    auth=auth.issuer(
        URL,
        users=[
            auth.login_provider("google", allow={"ada@example.com": ["orders:write"], "@example.com": []}),
            auth.login_provider("github", allow=["org:example"]),
            auth.login_provider(
                LOGIN,
                name="staff",
                title="our sign-in",
                client_id=os.environ["STAFF_CLIENT_ID"],
                client_secret=os.environ["STAFF_CLIENT_SECRET"],
                allow={"*": ["orders:write"]},
            ),
        ],
        scope_descriptions={"orders:write": "Order books"},
    ),
)
# endregion


@mcp.tool(scopes=["orders:write"])
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    return f"{isbn} is on its way to {ctx.principal.subject if ctx.principal else 'anonymous'}."


if __name__ == "__main__":
    mcp.run()
