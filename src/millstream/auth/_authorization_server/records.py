"""The stored records of the authorization server: clients, codes, and grants.

Records contain no secrets: secrets of clients, codes, and refresh tokens are stored as SHA-256. They are made from 32
random bytes, so a plain hash is sufficient.
"""

import hmac
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from msgspec import Struct

CODE, REFRESH, CLIENT = "authorization_code", "refresh_token", "client_credentials"
"""Grant types (RFC 6749 §1.3)."""
ASSERTED = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""The grant type of identity providers (RFC 7523 §2.1)."""


class OAuthClient(Struct, frozen=True, omit_defaults=True):
    """A client: a program that requests tokens."""

    id: str
    name: str = ""
    redirect_uris: tuple[str, ...] = ()
    method: str = "none"
    """Client authentication method: ``none``, ``client_secret_basic``, ``client_secret_post``, or ``private_key_jwt``.
    """
    secret_hash: str = ""
    grant_types: tuple[str, ...] = (CODE, REFRESH)
    scopes: tuple[str, ...] = ()
    """Scopes it may have when it acts for itself."""
    keys: Mapping[str, Any] | None = None
    """Its public keys as a set (RFC 7517), for ``private_key_jwt``."""
    keys_url: str = ""
    """URL of its public keys, alternatively."""
    source: str = "given"
    """Source of the client: configured by the operator (``given``), described at its URL (``document``), or
    ``registered``.
    """


class AuthorizationRequest(Struct, frozen=True, omit_defaults=True):
    """A checked authorization request."""

    client: str
    redirect_uri: str
    challenge: str
    resources: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    state: str | None = None
    """State, byte for byte, as latin-1."""
    named_redirect: bool = True
    """Whether the request named the redirect URI, so that the token request must not name another."""
    prompt: tuple[str, ...] = ()

    @property
    def renewal(self) -> str:
        """The required prompt: ``login``, ``select_account``, both separated by a space, or empty (OpenID Connect Core
        §3.1.2.1).
        """
        return " ".join(each for each in ("login", "select_account") if each in self.prompt)


class Code(Struct, frozen=True, omit_defaults=True):
    """The record of a code."""

    authorization: AuthorizationRequest
    grant: str
    """Id of the grant that it becomes."""
    subject: str
    name: str
    login: str
    since: float
    scopes: tuple[str, ...]
    until: float
    used: bool = False


class Grant(Struct, frozen=True, omit_defaults=True):
    """What a user has allowed a client, until it's revoked."""

    client: str
    subject: str
    name: str
    login: str
    """Login method of the user."""
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    proof: str = ""
    """Hash of the secret in its refresh tokens; empty if there are none."""
    since: float = 0.0
    """`User.since` of the user."""
    generation: int = 0
    """Generation of the current refresh token."""
    rotated_at: float = 0.0


def new_secret() -> str:
    """Return 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return the stored form of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def fits(secret: str, kept: str) -> bool:
    """Return whether a secret matches its stored form."""
    return bool(kept) and hmac.compare_digest(digest(secret), kept)
