"""A server of the official SDK with its own authorization server, which knows ada: ``sdk_issuer.py PORT``."""

import secrets
import sys
import time
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, AuthorizationCode, construct_redirect_uri
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.shared.auth import OAuthToken


class People:
    """The provider: everyone who comes is ada, and agrees."""

    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.tokens: dict[str, AccessToken] = {}

    async def get_client(self, client_id: str) -> Any:
        return self.clients.get(client_id)

    async def register_client(self, client_info: Any) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: Any, params: Any) -> str:
        code = AuthorizationCode(
            code=secrets.token_hex(16), client_id=client.client_id, redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly, expires_at=time.time() + 60,
            scopes=params.scopes or [], code_challenge=params.code_challenge, resource=params.resource,
        )  # fmt: skip
        self.codes[code.code] = code
        return construct_redirect_uri(str(params.redirect_uri), code=code.code, state=params.state)

    async def load_authorization_code(self, client: Any, authorization_code: str) -> Any:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, client: Any, authorization_code: Any) -> OAuthToken:
        token = secrets.token_hex(16)
        self.tokens[token] = AccessToken(
            token=token, client_id=client.client_id, scopes=authorization_code.scopes,
            expires_at=int(time.time()) + 600, resource=authorization_code.resource,
        )  # fmt: skip
        scope = " ".join(authorization_code.scopes)
        return OAuthToken(access_token=token, token_type="Bearer", expires_in=600, scope=scope)

    async def load_access_token(self, token: str) -> Any:
        return self.tokens.get(token)

    async def load_refresh_token(self, client: Any, refresh_token: str) -> None:
        return None


def main(port: int) -> None:
    """Serve."""
    url = f"http://127.0.0.1:{port}"
    registration = ClientRegistrationOptions(enabled=True)
    settings: Any = {"issuer_url": url, "resource_server_url": f"{url}/mcp", "required_scopes": ["read"]}
    people: Any = People()
    server = MCPServer(
        "sdk", auth_server_provider=people, auth=AuthSettings(**settings, client_registration_options=registration)
    )

    @server.tool()
    def who() -> str:
        token = get_access_token()
        return f"ada {' '.join(token.scopes)}" if token else "nobody"

    uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="warning")


main(int(sys.argv[1]))
