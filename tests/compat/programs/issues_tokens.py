"""A server that issues its own tokens, with an in-memory provider and a sign-in page as a custom route."""

import os
import secrets
import time

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from millstream.compat.fastmcp import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    AuthSettings,
    ClientRegistrationOptions,
    FastMCP,
    OAuthAuthorizationServerProvider,
    OAuthClientInformationFull,
    OAuthToken,
    RefreshToken,
    RevocationOptions,
    TokenError,
    construct_redirect_uri,
)

ISSUER = f"http://127.0.0.1:{os.environ['FASTMCP_PORT']}"


class InMemory(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.asked: dict[str, tuple[OAuthClientInformationFull, AuthorizationParams]] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        if params.state == "unwanted":
            raise AuthorizeError("access_denied", "Not today.")
        ticket = secrets.token_hex(16)
        self.asked[ticket] = (client, params)
        return f"{ISSUER}/login?ticket={ticket}"

    def agreed(self, ticket: str) -> str:
        client, params = self.asked.pop(ticket)
        code = AuthorizationCode(
            code=secrets.token_hex(20),
            scopes=params.scopes or ["myscope"],
            expires_at=time.time() + 300,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        return self.issue(client.client_id, authorization_code.scopes)  # doesn't delete the code

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if self.refresh.pop(refresh_token.token, None) is None:
            raise TokenError("invalid_grant", "It was used.")
        return self.issue(client.client_id, scopes)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access = {name: each for name, each in self.access.items() if each.client_id != token.client_id}
        self.refresh = {name: each for name, each in self.refresh.items() if each.client_id != token.client_id}

    def issue(self, client_id: str, scopes: list[str]) -> OAuthToken:
        access, refresh = secrets.token_hex(32), secrets.token_hex(32)
        until = int(time.time()) + 3600
        self.access[access] = AccessToken(token=access, client_id=client_id, scopes=scopes, expires_at=until)
        self.refresh[refresh] = RefreshToken(token=refresh, client_id=client_id, scopes=scopes)
        return OAuthToken(access_token=access, expires_in=3600, scope=" ".join(scopes), refresh_token=refresh)


provider = InMemory()
mcp = FastMCP(
    "My App",
    auth_server_provider=provider,
    auth=AuthSettings(
        issuer_url=ISSUER,
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


@mcp.custom_route("/login", methods=["GET"])
async def login(request: Request) -> Response:
    return RedirectResponse(provider.agreed(request.query_params["ticket"]))


@mcp.tool()
def secret() -> str:
    return "You may know it."


if __name__ == "__main__":
    mcp.run(transport="streamable-http")
