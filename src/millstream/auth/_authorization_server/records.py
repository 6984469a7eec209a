"""The stored records of the authorization server: clients, codes, and grants.

Client secrets, codes, and refresh tokens are stored only as SHA-256 hashes. They consist of 32 random bytes, so a plain
hash is sufficient.
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
"""Grant type for grants from identity providers (RFC 7523 §2.1)."""
METHODS = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")
"""Client authentication methods of the token endpoint (RFC 7591 §2)."""


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
    """Allowed scopes when the client acts for itself."""
    keys: Mapping[str, Any] | None = None
    """Public key set (RFC 7517), for ``private_key_jwt``."""
    keys_url: str = ""
    """URL of the key set, instead of `keys`."""
    source: str = "given"
    """Source of the client: configured by the operator (``given``), described at its URL (``document``), or
    ``registered``.
    """


class AuthorizationRequest(Struct, frozen=True, omit_defaults=True):
    """A valid authorization request."""

    client: str
    redirect_uri: str
    challenge: str
    resources: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    state: str | None = None
    """The bytes of `state`, decoded as latin-1."""
    named_redirect: bool = True
    """Whether the request named the redirect URI. If so, the token request must not name another one."""
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
    """Id of the grant that it can be exchanged for."""
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
    """Hash of the secret in the refresh tokens; empty without refresh tokens."""
    since: float = 0.0
    """`User.since` at the time of the grant."""
    generation: int = 0
    """Generation of the current refresh token."""
    rotated_at: float = 0.0


def new_secret() -> str:
    """Return a new secret with 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return the stored form of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def fits(secret: str, kept: str) -> bool:
    """Return whether a secret matches its stored form."""
    return bool(kept) and hmac.compare_digest(digest(secret), kept)
