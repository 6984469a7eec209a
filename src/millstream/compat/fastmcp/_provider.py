"""The provider protocol of the official SDK: what issues and looks after tokens, and the values that it passes."""

from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from millstream.compat._pydantic_parts import BaseModel, Field
from millstream.compat._types import Url


@dataclass(frozen=True)
class AuthorizeError(Exception):
    """`authorize` says no: the client receives ``error`` (RFC 6749 §4.1.2.1)."""

    error: str
    error_description: str | None = None


@dataclass(frozen=True)
class TokenError(Exception):
    """An exchange says no (RFC 6749 §5.2)."""

    error: str
    error_description: str | None = None


@dataclass(frozen=True)
class RegistrationError(Exception):
    """`register_client` says no (RFC 7591 §3.2.2)."""

    error: str
    error_description: str | None = None


class OAuthClientMetadata(BaseModel):
    """What a client says of itself (RFC 7591 §2)."""

    redirect_uris: list[Url] | None = None
    token_endpoint_auth_method: str | None = None
    grant_types: list[str] = Field(default_factory=lambda: ["authorization_code", "refresh_token"])
    response_types: list[str] = Field(default_factory=lambda: ["code"])
    scope: str | None = None
    application_type: str | None = None
    client_name: str | None = None
    client_uri: Url | None = None
    logo_uri: Url | None = None
    contacts: list[str] | None = None
    tos_uri: Url | None = None
    policy_uri: Url | None = None
    jwks_uri: Url | None = None
    jwks: Any | None = None
    software_id: str | None = None
    software_version: str | None = None


class OAuthClientInformationFull(OAuthClientMetadata):
    """A registered client."""

    client_id: str | None = None
    client_secret: str | None = None
    client_id_issued_at: int | None = None
    client_secret_expires_at: int | None = None


def construct_redirect_uri(redirect_uri_base: str, **params: str | None) -> str:
    """A URI with more in its query; None leaves a parameter out."""
    parts = urlsplit(redirect_uri_base)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    pairs += [(name, value) for name, value in params.items() if value is not None]
    return parts._replace(query=urlencode(pairs)).geturl()


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
    subject: str | None = None


class RefreshToken(BaseModel):
    """A token for new tokens."""

    token: str
    client_id: str
    scopes: list[str]
    expires_at: int | None = None
    resource: str | None = None
    subject: str | None = None


class OAuthToken(BaseModel):
    """What a client gets."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  the name of a kind of token
    expires_in: int | None = None
    scope: str | None = None
    refresh_token: str | None = None


class OAuthAuthorizationServerProvider(Protocol, Generic[CodeT, RefreshT, AccessT_co]):
    """Issues tokens. One without `authorize` issues none here: it only says whose a token is."""

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
