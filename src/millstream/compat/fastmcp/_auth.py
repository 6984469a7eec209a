"""Settings and authentication with the official SDK's interface: token verifiers, and providers that issue tokens.

Settings are converted to ours.
"""

import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, Field

from millstream._copies import CopyableError
from millstream._gateway.programs.libraries import hosts_and_origins
from millstream._http.hosts import is_loopback
from millstream._override import override
from millstream._protocol.principal import Principal
from millstream._suggestions import refuse_unknown
from millstream.auth._method import AuthMethod, Identity, Unavailable
from millstream.compat.fastmcp._outputs import current
from millstream.compat.types import Url
from millstream.protocol import Json

logger = logging.getLogger("millstream")

_SECONDS = 10.0
"""Maximum seconds that a verifier's result is cached."""


@dataclass(frozen=True)
class _ProviderError(CopyableError):
    """An error that the client receives."""

    error: str
    error_description: str | None = None


class AuthorizeError(_ProviderError):
    """An error from `authorize`. The client receives ``error`` (RFC 6749 §4.1.2.1)."""


class TokenError(_ProviderError):
    """An error from a token exchange (RFC 6749 §5.2)."""


class RegistrationError(_ProviderError):
    """An error from `register_client` (RFC 7591 §3.2.2)."""


class OAuthClientMetadata(BaseModel):
    """Metadata of a client (RFC 7591 §2)."""

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
    """Return a URI with parameters added to its query. Parameters that are None are left out.

    Args:
        redirect_uri_base: The client's redirect URI.
        params: Parameters to add, such as ``code="…"``.
    """
    parts = urlsplit(redirect_uri_base)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    pairs += [(name, value) for name, value in params.items() if value is not None]
    return parts._replace(query=urlencode(pairs)).geturl()


class _Authorization(BaseModel):
    code_challenge: str
    redirect_uri: Url
    redirect_uri_provided_explicitly: bool = True
    resource: str | None = None


class AuthorizationParams(_Authorization):
    """An authorization request."""

    state: str | None = None
    scopes: list[str] | None = None


class AuthorizationCode(_Authorization):
    """A code that a client exchanges for tokens."""

    code: str
    scopes: list[str]
    expires_at: float
    client_id: str
    subject: str | None = None


class _Token(BaseModel):
    token: str
    client_id: str
    expires_at: int | None = None
    resource: str | None = None
    subject: str | None = None


class RefreshToken(_Token):
    """A token that a client exchanges for new tokens."""

    scopes: list[str]


class AccessToken(_Token):
    """A verified token."""

    scopes: list[str] = Field(default_factory=list[str])
    claims: Json | None = None


class OAuthToken(BaseModel):
    """The token endpoint's response."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105  not a secret
    expires_in: int | None = None
    scope: str | None = None
    refresh_token: str | None = None


class ClientRegistrationOptions(BaseModel):
    """Options of dynamic client registration."""

    enabled: bool = False
    client_secret_expiry_seconds: int | None = None
    valid_scopes: list[str] | None = None
    default_scopes: list[str] | None = None


class RevocationOptions(BaseModel):
    """Options of token revocation."""

    enabled: bool = False


class AuthSettings(BaseModel):
    """The issuer of tokens, their audience, and the scopes that every caller needs."""

    issuer_url: Url
    service_documentation_url: Url | None = None
    client_registration_options: ClientRegistrationOptions | None = None
    revocation_options: RevocationOptions | None = None
    required_scopes: list[str] | None = None
    resource_server_url: Url | None = None
    validate_token_resource: bool | None = None


class TokenVerifier(Protocol):
    """Verifies tokens."""

    async def verify_token(self, token: str) -> Any:  # the program's own class, or None
        """Return the `AccessToken`, or None for an invalid token.

        Args:
            token: The token from the ``Authorization`` header.
        """
        ...


CodeT = TypeVar("CodeT")
RefreshT = TypeVar("RefreshT")
AccessT_co = TypeVar("AccessT_co", covariant=True)


class OAuthAuthorizationServerProvider(Protocol, Generic[CodeT, RefreshT, AccessT_co]):
    """Issues tokens. A provider without `authorize` only verifies them."""

    async def get_client(self, client_id: str) -> Any:  # the program's own class, or None
        """Return a registered client, or None for an unknown one.

        Args:
            client_id: Id that the client sent.
        """

    async def register_client(self, client_info: Any) -> None:
        """Store a client.

        Args:
            client_info: The client, as `OAuthClientInformationFull`, with its new id.
        """

    async def authorize(self, client: Any, params: AuthorizationParams) -> str:
        """Return the URL of the page where the user signs in.

        Args:
            client: The registered client.
            params: The authorization request, already checked.
        """
        ...

    async def load_authorization_code(self, client: Any, authorization_code: str) -> CodeT | None:
        """Return an issued code, or None for an unknown one.

        Args:
            client: The registered client.
            authorization_code: The code that the client sent.
        """

    async def exchange_authorization_code(self, client: Any, authorization_code: CodeT) -> OAuthToken:
        """Return tokens for a code.

        Args:
            client: The registered client.
            authorization_code: The result of `load_authorization_code`.
        """
        ...

    async def load_refresh_token(self, client: Any, refresh_token: str) -> RefreshT | None:
        """Return an issued refresh token, or None for an unknown one.

        Args:
            client: The registered client.
            refresh_token: The token that the client sent.
        """

    async def exchange_refresh_token(self, client: Any, refresh_token: RefreshT, scopes: list[str]) -> OAuthToken:
        """Return new tokens for a refresh token.

        Args:
            client: The registered client.
            refresh_token: The result of `load_refresh_token`.
            scopes: Requested scopes, a subset of the refresh token's.
        """
        ...

    async def load_access_token(self, token: str) -> AccessT_co | None:
        """Return a valid access token, or None for any other.

        Args:
            token: The token from the ``Authorization`` header.
        """

    async def revoke_token(self, token: Any) -> None:
        """Revoke a token.

        Args:
            token: An access token or a refresh token, as this provider loaded it.
        """


@dataclass(eq=False)
class ProviderTokenVerifier:
    """Verifies a provider's tokens."""

    provider: Any

    async def verify_token(self, token: str) -> Any:  # the program's own class, or None
        """Return the provider's record of a token.

        Args:
            token: The token from the ``Authorization`` header.
        """
        return await self.provider.load_access_token(token)


class VerifierMethod(AuthMethod):
    """A verifier as an auth method of the guard."""

    shows = True

    def __init__(self, verifier: TokenVerifier, settings: AuthSettings) -> None:
        self._verifier = verifier
        self._checks_resource = bool(settings.validate_token_resource)
        self.resource = str(settings.resource_server_url or "").rstrip("/")
        self.issuers = (str(settings.issuer_url),) if self.resource else ()
        self.scopes = tuple(settings.required_scopes or ())
        self._urls: Collection[str] = (self.resource,)

    @override
    def serve_at(self, urls: Collection[str]) -> None:
        """See `AuthMethod.serve_at`."""
        self._urls = {each.rstrip("/") for each in (self.resource, *urls)}

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the identity of a token's owner, or None for an invalid token.

        Raises:
            Unavailable: The verifier failed.
        """
        try:
            found = await self._verifier.verify_token(credential)
        except Exception as error:
            logger.exception("The token verifier failed.")
            raise Unavailable("The token can't be verified at the moment. Try again later.") from error
        if found is None or (self._checks_resource and str(found.resource or "").rstrip("/") not in self._urls):
            return None
        until = inf if found.expires_at is None else float(found.expires_at)
        seconds = min(_SECONDS, until - time.time())
        if seconds <= 0:
            return None
        subject = getattr(found, "subject", None) or found.client_id
        client, scopes = str(found.client_id), frozenset[str](found.scopes)
        principal = Principal(
            str(subject), client=client, scopes=scopes, claims={"access_token": found}, expires_at=until
        )
        return Identity(principal, seconds)

    @override
    def holds(self, id: str) -> bool:
        """Return True: verifiers report no revocations, so their results are only cached for seconds."""
        return True


def get_access_token() -> Any:  # what the program's verifier returned
    """Return the `AccessToken` of the current call, or None without one."""
    context = current.get(None)
    with suppress(ValueError, AttributeError):
        principal = context._engine.principal
        return None if principal is None else principal.claims.get("access_token")
    return None


MAX_BODY = 4 * 1024 * 1024


@dataclass
class TransportSecuritySettings:
    """Allowed Host and Origin headers, such as ``example.com`` or ``127.0.0.1:*``."""

    enable_dns_rebinding_protection: bool = True
    allowed_hosts: list[str] = field(default_factory=list[str])
    allowed_origins: list[str] = field(default_factory=list[str])


@dataclass
class Settings:
    """A server's settings. A program can change them until the server starts."""

    debug: bool = False
    log_level: str = "INFO"
    host: str = "127.0.0.1"
    port: int = 8000
    mount_path: str = "/"
    sse_path: str = "/sse"
    message_path: str = "/messages/"
    streamable_http_path: str = "/mcp"
    json_response: bool = False
    stateless_http: bool = False
    max_request_body_size: int = MAX_BODY
    session_idle_timeout: float | None = None
    max_sessions: int | None = None
    warn_on_duplicate_tools: bool = True
    warn_on_duplicate_resources: bool = True
    warn_on_duplicate_prompts: bool = True
    dependencies: list[str] = field(default_factory=list[str])
    lifespan: Any = None
    auth: Any = None
    transport_security: Any = None

    def ours(self, *, is_app: bool = True) -> Json:
        """Return the corresponding fields of `millstream.Settings`.

        Args:
            is_app: Whether the server is an application, whose middleware may admit pages of other origins.
        """
        made: Json = {
            "path": self.streamable_http_path,
            "sse_path": self.sse_path,
            "messages_path": self.message_path,
            "json_only": self.json_response,
            "sessions": not self.stateless_http,
            "max_body": self.max_request_body_size,
            "client_log_level": "debug",
            "log_level": self.log_level.lower(),
        }
        security = self.transport_security
        if not is_loopback(self.host):
            made["allow_anonymous"] = True
        elif security is None:
            return made
        if security is None or not security.enable_dns_rebinding_protection:
            # Like the SDK: accept every Host, but let no page of another origin read the response.
            admitted = ["*"] if is_app or security is not None else []
            return made | {"allowed_hosts": ("*",), "allowed_origins": tuple(admitted), "cors": False}
        hosts, origins = hosts_and_origins(security)
        return made | {"allowed_hosts": hosts, "allowed_origins": origins}


_FROM_ENVIRONMENT: dict[str, Callable[[str], Any]] = {
    "host": str,
    "port": int,
    "log_level": str,
    "debug": lambda text: text.lower() in ("1", "true"),
}


def settings_of(options: dict[str, Any]) -> Settings:
    """Return the settings for these options, with defaults from `FASTMCP_HOST`, `_PORT`, `_LOG_LEVEL`, and `_DEBUG`.

    Raises:
        TypeError: An option is unknown.
    """
    refuse_unknown("FastMCP", options, Settings.__dataclass_fields__, {})
    given = dict(options)
    for name, read in _FROM_ENVIRONMENT.items():
        text = os.environ.get(f"FASTMCP_{name.upper()}")
        if text and name not in given:
            given[name] = read(text)
    given["dependencies"] = list(given.get("dependencies") or ())
    made = Settings(**given)
    if made.transport_security is None and made.host in ("127.0.0.1", "localhost", "::1"):
        made.transport_security = TransportSecuritySettings(
            allowed_hosts=["127.0.0.1:*", "localhost:*", "[::1]:*"],
            allowed_origins=["http://127.0.0.1:*", "http://localhost:*", "http://[::1]:*"],
        )
    return made
