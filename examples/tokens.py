"""A server that takes the tokens of an authorization server. MCP clients find it by themselves, and sign in there."""

# region: server
import os

from millstream import Context, Server, auth

ISSUER = os.environ.get("ISSUER", "https://login.example.com")

mcp = Server(
    "bookshop",
    auth=auth.oidc(
        ISSUER,
        audience="https://mcp.example.com/mcp",
        scopes=["orders:read"],
        scope_includes={"orders:write": ["orders:read"]},
    ),
)


@mcp.tool(scopes=["orders:write"])
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    return f"{isbn} is on its way to {ctx.principal.subject if ctx.principal else 'anonymous'}."


# endregion


# region: jwt
def by_the_keys(issuer: str) -> auth.AnyAuthMethod:
    """The issuer's keys are at a URL that you know."""
    return auth.jwt(issuer=issuer, audience="https://mcp.example.com/mcp", jwks=f"{issuer}/keys")


# endregion


# region: introspection
def by_asking(issuer: str, secret: str) -> auth.AnyAuthMethod:
    """Ask the issuer about each token, as a client that is registered there (RFC 7662)."""
    return auth.introspection(
        issuer=issuer,
        audience="https://mcp.example.com/mcp",
        endpoint=f"{issuer}/introspect",
        client="bookshop",
        secret=secret,
    )


# endregion

if __name__ == "__main__":
    mcp.run()
