"""A shop with external sign-in: at an upstream that simulates Google, or at a token issuer."""

import os

from millstream import Context, Server, auth

URL, PROVIDER = os.environ["SHOP_URL"], os.environ["PROVIDER_URL"]
google = auth.login_provider("google", allow=["@example.com"], base_url=PROVIDER)
mcp = Server(
    "Book shop",
    serve="all",
    auth=[
        auth.issuer(URL, users=google),
        auth.oidc(
            PROVIDER,
            audience=f"{URL}/mcp",
            client_id=os.environ["DESK_CLIENT_ID"],
            client_secret=os.environ["DESK_CLIENT_SECRET"],
        ),
    ],
)


@mcp.tool
async def who(ctx: Context) -> str:
    """Who asks."""
    return ctx.principal.subject if ctx.principal else "nobody"
