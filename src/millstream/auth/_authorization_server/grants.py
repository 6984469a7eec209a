"""Grants: what a user has allowed a client. A code is exchanged for a grant, which issues tokens until it's revoked.

A code is valid once. Using it again revokes its grant, because one of the two uses was a theft. A refresh token
contains its grant's id and its generation, so reuse is detected. The previous generation works for another minute and
returns the current token, because its response may have been lost, and some clients refresh on several nodes at once.
After that it's refused, but only an older generation revokes the grant.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from millstream.auth._authorization_server.answers import OAuthError
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import ACCESS_SECONDS, REFRESH_SECONDS, IssuerConfig
from millstream.auth._authorization_server.records import (
    REFRESH,
    AuthorizationRequest,
    Code,
    Grant,
    OAuthClient,
    digest,
    fits,
    new_secret,
)
from millstream.auth._authorization_server.signing import TOMBSTONE, TokenSigner, Vault, read
from millstream.auth.providers import User

CODE_SECONDS = 60.0
GRACE = 60.0
"""Seconds for which a replaced refresh token still works."""
ENDED = "oauth-ended"
"""Topic for revocations between workers: the grant's id, a space, and the subject."""
_USED_SECONDS = 3600.0
_TRIES = 8
_PREFIX = "mr_"
"""Prefix that lets secret scanners recognize leaked refresh tokens."""
_REFRESH_KIND = b"oauth refresh token"
_RESERVED = frozenset(("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "grant_id", "cnf"))


class TokenReuse(OAuthError):
    """A code or refresh token was reused, possibly by an attacker."""

    def __init__(self, text: str, *, ended: bool) -> None:
        super().__init__("invalid_grant", text)
        self.ended = ended
        """Whether this reuse revoked the grant: True once per grant, even for concurrent reuses."""


class RefreshToken(msgspec.Struct, frozen=True, array_like=True):
    """The sealed content of a refresh token."""

    grant: str
    generation: int
    secret: str


class Grants(Struct, frozen=True):
    """All grants."""

    config: IssuerConfig
    vault: Vault
    signing: TokenSigner
    clients: Clients

    # Codes

    async def make_code(
        self, authorization: AuthorizationRequest, user: User, login: str, scopes: tuple[str, ...]
    ) -> str:
        """Create a code for a request that a user has approved."""
        code = new_secret()
        until = self.vault.clock() + CODE_SECONDS
        kept = Code(authorization, new_secret()[:22], user.subject, user.name, login, user.since, scopes, until)
        await self.vault.put(_code_key(code), kept, _USED_SECONDS)
        return code

    async def peek(self, code: str) -> tuple[Code, bytes] | None:
        """Return a code's record and its stored bytes; None for an unknown code."""
        raw = await self.vault.kv.get(_code_key(code))
        kept = read(raw, Code)
        return None if raw is None or kept is None else (kept, raw)

    async def redeem(self, code: str, kept: Code, raw: bytes) -> tuple[str, Grant, str]:
        """Exchange a code for its grant: return the grant's id, the grant, and a refresh token if the client uses them.

        Args:
            code: The code.
            kept: Its record.
            raw: Its stored bytes.

        Raises:
            TokenReuse: The code was used before, which revokes the grant.
            OAuthError: The code has expired.
        """
        used = msgspec.structs.replace(kept, used=True)
        if kept.used or not await self.vault.exchange(_code_key(code), raw, used, _USED_SECONDS):
            raise await self._handle_reuse(kept.grant, kept.subject, "The code has already been used.")
        if kept.until < self.vault.clock():
            raise OAuthError("invalid_grant", "The code has expired.")
        client = await self.clients.find(kept.authorization.client)
        refreshable = client is not None and REFRESH in client.grant_types
        secret = new_secret() if refreshable else ""
        grant = Grant(
            kept.authorization.client,
            kept.subject,
            kept.name,
            kept.login,
            kept.scopes,
            kept.authorization.resources,
            digest(secret) if secret else "",
            kept.since,
        )
        ttl = REFRESH_SECONDS if secret else ACCESS_SECONDS * 2
        if not await self.vault.exchange(_grant_key(kept.grant), None, grant, ttl):
            raise TokenReuse("The code has already been used.", ended=True)
        return kept.grant, grant, self._refresh_token(kept.grant, 0, secret) if secret else ""

    async def add(self, grant: Grant) -> str:
        """Store a grant for a single access token, and return its id."""
        id = new_secret()[:22]
        await self.vault.put(_grant_key(id), grant, ACCESS_SECONDS * 2)
        return id

    # Refresh tokens

    async def find(self, token: str) -> tuple[RefreshToken, Grant] | None:
        """Return the content and grant of a refresh token of any generation; None if it's unknown or revoked."""
        said = self.vault.open(_REFRESH_KIND, token.removeprefix(_PREFIX), RefreshToken)
        grant = await self.get(said.grant) if said is not None else None
        return None if said is None or grant is None or not fits(said.secret, grant.proof) else (said, grant)

    async def get(self, id: str) -> Grant | None:
        """Return a grant; None if it was revoked or has expired."""
        return await self.vault.get(_grant_key(id), Grant)

    async def rotate(self, said: RefreshToken) -> str:
        """Return the successor of a refresh token.

        Raises:
            TokenReuse: The token is older than the previous one, which revokes the grant.
            OAuthError: The token was replaced and its grace period is over, or the grant was revoked.
        """
        for _ in range(_TRIES):
            raw, now = await self.vault.kv.get(_grant_key(said.grant)), self.vault.clock()
            grant = read(raw, Grant)
            if raw is None or grant is None:
                break
            if said.generation == grant.generation - 1:
                if now - grant.rotated_at <= GRACE:
                    return self._refresh_token(said.grant, grant.generation, said.secret)
                raise OAuthError("invalid_grant", "This refresh token was replaced. Use the newer one.")
            if said.generation != grant.generation:
                text = "The refresh token has already been used. Its grant and all tokens are revoked. Sign in again."
                raise await self._handle_reuse(said.grant, grant.subject, text)
            after = msgspec.structs.replace(grant, generation=grant.generation + 1, rotated_at=now)
            if await self.vault.exchange(_grant_key(said.grant), raw, after, REFRESH_SECONDS):
                return self._refresh_token(said.grant, after.generation, said.secret)
        raise OAuthError("invalid_grant", "The refresh token is no longer valid. Sign in again.")

    def _refresh_token(self, grant: str, generation: int, secret: str) -> str:
        return _PREFIX + self.vault.seal(_REFRESH_KIND, RefreshToken(grant, generation, secret))

    # Revocation

    async def _handle_reuse(self, id: str, subject: str, text: str) -> TokenReuse:
        raw = await self.vault.kv.get(_grant_key(id))
        there = raw is not None and read(raw, Grant) is not None
        ended = there and await self.vault.exchange(_grant_key(id), raw, TOMBSTONE, _USED_SECONDS)
        await self.end(id, subject)
        return TokenReuse(text, ended=ended)

    async def end(self, id: str, subject: str) -> None:
        """Revoke a grant. Its tokens become invalid on all workers within a second."""
        # A tombstone makes a concurrent redemption of the code fail.
        await self.vault.put(_grant_key(id), TOMBSTONE, _USED_SECONDS)
        await self.vault.bus.publish(ENDED, f"{id} {subject}".encode())

    async def revoke_token(self, jti: str, subject: str, until: float) -> None:
        """Revoke an access token without a grant."""
        await self.vault.put(f"oauth-revoked:{jti}", TOMBSTONE, max(1.0, until - self.vault.clock() + 120))
        await self.vault.bus.publish(ENDED, f"- {subject}".encode())

    async def is_revoked(self, jti: str) -> bool:
        """Return whether an access token without a grant was revoked."""
        return await self.vault.kv.get(f"oauth-revoked:{jti}") is not None

    # Access tokens

    async def access_token(
        self,
        client: OAuthClient,
        subject: str,
        scopes: tuple[str, ...],
        resources: tuple[str, ...],
        *,
        grant: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Create an access token, and return its part of the token response (RFC 6749 §5.1, RFC 9068)."""
        now = int(self.vault.clock())
        claims: dict[str, Any] = {name: value for name, value in (more or {}).items() if name not in _RESERVED}
        claims |= {
            "iss": self.config.url,
            "sub": subject,
            "aud": resources[0] if len(resources) == 1 else list(resources),
            "client_id": client.id,
            "scope": " ".join(scopes),
            "iat": now,
            "exp": now + ACCESS_SECONDS,
            "jti": new_secret()[:22],
        }
        if grant:
            claims["grant_id"] = grant
        return {
            "access_token": await self.signing.sign(claims),
            "token_type": "Bearer",
            "expires_in": ACCESS_SECONDS,
            "scope": " ".join(scopes),
        }


def _code_key(code: str) -> str:
    return f"oauth-code:{digest(code)}"


def _grant_key(id: str) -> str:
    return f"oauth-grant:{id}"
