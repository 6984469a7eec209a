"""A server whose provider issues and verifies tokens, with the page's settings."""

from millstream.compat.fastmcp import (
    AccessToken,
    AuthSettings,
    ClientRegistrationOptions,
    FastMCP,
    OAuthAuthorizationServerProvider,
    RevocationOptions,
)


class MyOAuthServerProvider(OAuthAuthorizationServerProvider):
    async def load_access_token(self, token: str) -> AccessToken | None:
        scopes = {"good": ["myscope"], "narrow": []}.get(token)
        return None if scopes is None else AccessToken(token=token, client_id="someone", scopes=scopes)


mcp = FastMCP(
    "My App",
    auth_server_provider=MyOAuthServerProvider(),
    auth=AuthSettings(
        issuer_url="https://myapp.com",
        resource_server_url=None,
        revocation_options=RevocationOptions(
            enabled=True,
        ),
        client_registration_options=ClientRegistrationOptions(
            enabled=True,
            valid_scopes=["myscope", "myotherscope"],
            default_scopes=["myscope"],
        ),
        required_scopes=["myscope"],
    ),
)


@mcp.tool()
def secret() -> str:
    return "You may know it."


if __name__ == "__main__":
    mcp.run(transport="streamable-http")
