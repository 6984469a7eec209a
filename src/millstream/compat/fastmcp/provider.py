"""The provider protocol of the official SDK: what issues and looks after tokens, and the values that it passes."""

from typing import Any, Generic, Literal, Protocol, TypeVar

from millstream.compat.pydantic_parts import BaseModel
from millstream.compat.types import Url

CodeT = TypeVar("CodeT")
RefreshT = TypeVar("RefreshT")
AccessT_co = TypeVar("AccessT_co", covariant=True)


class AuthorizationParams(BaseModel):
    """What a client asked for when it sent a person to sign in."""

    state: str | None = None
    scopes: list[str] | None = None
    code_challenge: str
    redirect_uri: Url
    redirect_uri_provided_explicitly: bool = True
    resource: str | None = None


class AuthorizationCode(BaseModel):
    """A code that a client exchanges for tokens."""

    code: str
    scopes: list[str]
    expires_at: float
    client_id: str
    code_challenge: str
    redirect_uri: Url
    redirect_uri_provided_explicitly: bool = True
    resource: str | None = None


class RefreshToken(BaseModel):
    """A token for new tokens."""

    token: str
    client_id: str
    scopes: list[str]
    expires_at: int | None = None


class OAuthToken(BaseModel):
    """What a client gets."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  the name of a kind of token
    expires_in: int | None = None
    scope: str | None = None
    refresh_token: str | None = None


class OAuthAuthorizationServerProvider(Protocol, Generic[CodeT, RefreshT, AccessT_co]):
    """Issues tokens. The door asks `load_access_token` whose a token is."""

    async def get_client(self, client_id: str) -> Any:
        """A registered client; None for an unknown one."""

    async def register_client(self, client_info: Any) -> None:
        """Keep a client."""

    async def authorize(self, client: Any, params: AuthorizationParams) -> str:
        """Where a person is sent to sign in."""
        ...

    async def load_authorization_code(self, client: Any, authorization_code: str) -> CodeT | None:
        """A code that was issued."""

    async def exchange_authorization_code(self, client: Any, authorization_code: CodeT) -> OAuthToken:
        """Tokens for a code."""
        ...

    async def load_refresh_token(self, client: Any, refresh_token: str) -> RefreshT | None:
        """A refresh token that was issued."""

    async def exchange_refresh_token(self, client: Any, refresh_token: RefreshT, scopes: list[str]) -> OAuthToken:
        """New tokens."""
        ...

    async def load_access_token(self, token: str) -> AccessT_co | None:
        """An access token that was issued, and is valid now."""

    async def revoke_token(self, token: Any) -> None:
        """Take a token back."""
