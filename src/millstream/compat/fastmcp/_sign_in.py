"""Sign-in as the other libraries configure it: settings, and a verifier that tells whose a token is."""

import logging
import time
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from millstream._protocol.principal import Principal
from millstream.auth._method import Identity, Unavailable
from millstream.compat._pydantic_parts import BaseModel, Field
from millstream.compat._types import Url
from millstream.compat.fastmcp._injection import current

logger = logging.getLogger("millstream")

_SECONDS = 10.0
"""How long a verifier's word counts where the token does not end earlier."""


class AccessToken(BaseModel):
    """A token that was verified."""

    token: str
    client_id: str
    scopes: list[str] = Field(default_factory=list[str])
    expires_at: int | None = None
    resource: str | None = None
    subject: str | None = None
    claims: dict[str, Any] | None = None


class TokenVerifier(Protocol):
    """Tells whose a token is."""

    async def verify_token(self, token: str) -> Any:
        """The `AccessToken`; None for one that is not valid."""
        ...


class ClientRegistrationOptions(BaseModel):
    """How clients register themselves."""

    enabled: bool = False
    client_secret_expiry_seconds: int | None = None
    valid_scopes: list[str] | None = None
    default_scopes: list[str] | None = None


class RevocationOptions(BaseModel):
    """Whether tokens can be taken back."""

    enabled: bool = False


class AuthSettings(BaseModel):
    """Who issues tokens, what for, and which scopes everybody needs."""

    issuer_url: Url
    service_documentation_url: Url | None = None
    client_registration_options: ClientRegistrationOptions | None = None
    revocation_options: RevocationOptions | None = None
    required_scopes: list[str] | None = None
    resource_server_url: Url | None = None
    validate_token_resource: bool | None = None


class VerifierMethod:
    """A verifier as one of our ways to sign in."""

    binds = False
    shows = True

    def __init__(self, verifier: TokenVerifier, settings: Any) -> None:
        self._verifier = verifier
        self._checked = bool(getattr(settings, "validate_token_resource", None))
        self.resource = str(getattr(settings, "resource_server_url", None) or "").rstrip("/")
        self.issuers: tuple[str, ...] = (str(settings.issuer_url),) if settings is not None and self.resource else ()
        required = getattr(settings, "required_scopes", None) or getattr(verifier, "required_scopes", None)
        self.scopes: tuple[str, ...] = tuple(required or ())

    async def identify(self, credential: str) -> Identity | None:
        """Whom a token belongs to.

        Raises:
            Unavailable: the verifier failed.
        """
        try:
            found = await self._verifier.verify_token(credential)
        except Exception as error:
            logger.exception("The token verifier failed.")
            raise Unavailable("Nobody can tell now whether the token is valid. Try again later.") from error
        if found is None or (self._checked and str(found.resource or "").rstrip("/") != self.resource):
            return None
        seconds, until = _SECONDS, inf
        if found.expires_at is not None:
            until = float(found.expires_at)
            seconds = min(seconds, until - time.time())
            if seconds <= 0:
                return None
        claims = {"access_token": found}
        subject = getattr(found, "subject", None) or found.client_id
        client, scopes = str(found.client_id), frozenset[str](found.scopes)
        return Identity(Principal(str(subject), client=client, scopes=scopes, claims=claims, until=until), seconds)

    def holds(self, id: str) -> bool:
        """A verifier does not say; its word counts for a short time only."""
        return True

    def epoch(self) -> int:
        """Nothing is taken back."""
        return 0


class ProviderTokenVerifier:
    """A provider of tokens as their verifier."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    async def verify_token(self, token: str) -> Any:
        """The provider's own record of a token."""
        return await self._provider.load_access_token(token)


def get_access_token() -> Any:
    """The token of the call that runs; None where nobody had to sign in."""
    context = current.get(None)
    with suppress(ValueError, AttributeError):
        principal = context._engine.principal
        return None if principal is None else principal.claims.get("access_token")
    return None
