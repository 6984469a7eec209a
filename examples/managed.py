"""An organization's bookshop: its identity provider decides who may order, and this server shows no sign-in page."""

import os
from collections.abc import Callable

from millstream import Client, Context, Server, auth
from millstream.client import IdentityProvider, MemoryTokenStore, OAuth, Options

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:8000")
LOGIN = os.environ.get("LOGIN", "https://login.example.com")
DESK_SECRET = os.environ.get("DESK_SECRET", "")

# region: server
mcp = Server(
    "Book shop",
    auth=auth.issuer(
        URL,
        users=auth.identity_provider(LOGIN, scopes=["orders:write"]),
        clients=[auth.client("desk", secret=DESK_SECRET)],
    ),
)


@mcp.tool(scopes=["orders:write"])
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    return f"{isbn} is on its way to {ctx.principal.subject if ctx.principal else 'anonymous'}."


# endregion


# region: client
async def order_for(id_token: Callable[[], str]) -> str:
    """Order a book for a person who has signed in at the provider."""
    me = OAuth(store=MemoryTokenStore(), client_id="desk", client_secret=DESK_SECRET)
    me.with_identity_provider(IdentityProvider(LOGIN, id_token=id_token, client_id="desk-at-login"))
    async with Client(f"{URL}/mcp", options=Options(auth=me)) as client:
        return (await client.call("order", isbn="9780261103573")).text


# endregion

if __name__ == "__main__":
    mcp.run()
