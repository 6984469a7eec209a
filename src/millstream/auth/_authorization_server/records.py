"""What the authorization server remembers, as it stands in the store: clients, codes, grants.

No secret is in it: what a client, a code or a refresh token has to show is kept as its SHA-256. These secrets are made
from 32 random bytes, so that a plain hash is enough.
"""

import hmac
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from msgspec import Struct

CODE, REFRESH, CLIENT = "authorization_code", "refresh_token", "client_credentials"
"""The kinds of grants (RFC 6749 §1.3)."""
ASSERTED = "urn:ietf:params:oauth:grant-type:jwt-bearer"
"""And one that somebody else has signed (RFC 7523 §2.1)."""


class Client(Struct, frozen=True, omit_defaults=True):
    """A program that asks for tokens."""

    id: str
    name: str = ""
    redirect_uris: tuple[str, ...] = ()
    method: str = "none"
    """How it shows who it is at the token endpoint: ``none``, ``client_secret_basic``, ``client_secret_post`` or
    ``private_key_jwt``."""
    secret_hash: str = ""
    grant_types: tuple[str, ...] = (CODE, REFRESH)
    scopes: tuple[str, ...] = ()
    """Those that it may have when it acts for itself."""
    keys: Mapping[str, Any] | None = None
    """Its public keys as a set (RFC 7517), for ``private_key_jwt``."""
    keys_url: str = ""
    """Where they are, otherwise."""
    source: str = "given"
    """Who vouches for it: the program's author (``given``), the owner of its URL (``document``), or nobody
    (``registered``)."""


class AuthorizationRequest(Struct, frozen=True, omit_defaults=True):
    """What a client asks for at the authorization endpoint, after it was checked."""

    client: str
    redirect_uri: str
    challenge: str
    resources: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    state: str | None = None
    """Byte for byte, as latin-1."""
    named_redirect: bool = True
    """The request named the redirect URI, so that the token request must not name another."""
    prompt: tuple[str, ...] = ()

    @property
    def renewal(self) -> str:
        """How the person has to sign in, whoever has done so before: ``login``, ``select_account``, both with a blank
        between them, or empty for no matter how (OpenID Connect Core §3.1.2.1).
        """
        return " ".join(each for each in ("login", "select_account") if each in self.prompt)


class Code(Struct, frozen=True, omit_defaults=True):
    """What a code stands for."""

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
    """What somebody has allowed a client, until it is taken back."""

    client: str
    subject: str
    name: str
    login: str
    """How the person signed in."""
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    proof: str = ""
    """Hash of the secret in its refresh tokens; empty where there are none."""
    since: float = 0.0
    """`User.since` of the person."""
    generation: int = 0
    """Of the refresh token that counts."""
    rotated: float = 0.0


def new_secret() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def fits(secret: str, kept: str) -> bool:
    """Whether a secret is the one of which this was kept."""
    return bool(kept) and hmac.compare_digest(digest(secret), kept)
