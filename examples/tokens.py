"""A server that takes the tokens of an authorization server. MCP clients find it by themselves, and sign in there."""

import os

from millstream import Context, Server, auth

ISSUER = os.environ.get("ISSUER", "https://login.example.com")

# region: server
mcp = Server(
    "notes",
    auth=auth.oidc(
        ISSUER,
        audience="https://mcp.example.com/mcp",
        scopes=["notes:read"],
        implied={"notes:write": ["notes:read"]},
    ),
)


@mcp.tool(scopes=["notes:write"])
async def write(text: str, ctx: Context) -> str:
    """Write a note."""
    return f"{ctx.principal.subject if ctx.principal else 'Nobody'} wrote {text}"


# endregion

if __name__ == "__main__":
    mcp.run()
