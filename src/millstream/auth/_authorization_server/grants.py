"""Grants: what a person has allowed a client. Codes become grants, grants become tokens, until somebody ends them.

A code counts once; using it again ends the grant that it became, since one of the two users was a thief. A refresh
token names its grant and generation and is sealed, so an old one is known for what it is. The previous generation still
works for a minute and gives the current one: its reply may have been lost, and some clients refresh from several nodes
that don't share state. After that it is refused, but only an older one ends the grant.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from millstream.auth._authorization_server.answers import OAuthError
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import ACCESS_SECONDS, REFRESH_SECONDS, IssuerConfig
from millstream.auth._authorization_server.login_methods import User
from millstream.auth._authorization_server.records import (
    REFRESH,
    AuthorizationRequest,
    Client,
    Code,
    Grant,
    digest,
    fits,
    new_secret,
)
from millstream.auth._authorization_server.signing import Signing
from millstream.auth._authorization_server.vault import TOMBSTONE, Vault, read

CODE_SECONDS = 60.0
GRACE = 60.0
"""Seconds in which the previous refresh token still works."""
ENDED = "oauth-ended"
"""Topic on which workers hear of grants that have ended: the grant's id, a blank, and the subject."""
_USED_SECONDS = 3600.0
_TRIES = 8
_PREFIX = "mr_"
"""Scanners for leaked secrets find refresh tokens by that."""
_REFRESH_KIND = b"oauth refresh token"
_RESERVED = frozenset(("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "grant_id", "cnf"))


class Reused(OAuthError):
    """A code or refresh token was used before, by somebody else perhaps."""

    def __init__(self, text: str, *, ended: bool) -> None:
        super().__init__("invalid_grant", text)
        self.ended = ended
        """What it had given counted until then: true once for each grant, however many bring it at once."""


class RefreshToken(msgspec.Struct, frozen=True, array_like=True):
    """What is sealed in a refresh token."""

    grant: str
    generation: int
    secret: str


class Grants:
    """Every grant that there is."""

    def __init__(self, config: IssuerConfig, vault: Vault, signing: Signing, clients: Clients) -> None:
        self._config = config
        self._vault = vault
        self._signing = signing
        self._clients = clients

    # Codes

    async def make_code(
        self, authorization: AuthorizationRequest, user: User, login: str, scopes: tuple[str, ...]
    ) -> str:
        """A code for what a person has just allowed."""
        code = new_secret()
        until = self._vault.clock() + CODE_SECONDS
        kept = Code(authorization, new_secret()[:22], user.subject, user.name, login, user.since, scopes, until)
        await self._vault.put(_code_key(code), kept, _USED_SECONDS)
        return code

    async def peek(self, code: str) -> tuple[Code, bytes] | None:
        """What a code stands for, and how it is kept; None for one that never was."""
        raw = await self._vault.raw(_code_key(code))
        kept = read(raw, Code)
        return None if raw is None or kept is None else (kept, raw)

    async def redeem(self, code: str, kept: Code, raw: bytes) -> tuple[str, Grant, str]:
        """Make the grant that a code stands for: its id, the grant, and its refresh token, if the client takes any.

        Args:
            code: that the client brought.
            kept: what it stands for.
            raw: how that is kept.

        Raises:
            Reused: the code was used before, which ends the grant.
            OAuthError: it is too old.
        """
        used = msgspec.structs.replace(kept, used=True)
        if kept.used or not await self._vault.exchange(_code_key(code), raw, used, _USED_SECONDS):
            raise await self._reused(kept.grant, kept.subject, "The code was used before.")
        if kept.until < self._vault.clock():
            raise OAuthError("invalid_grant", "The code is too old.")
        client = await self._clients.find(kept.authorization.client)
        refreshable = client is not None and REFRESH in client.grant_types
        secret = new_secret() if refreshable else ""
        grant = Grant(
            kept.authorization.client, kept.subject, kept.name, kept.login, kept.scopes, kept.authorization.resources,
            digest(secret) if secret else "", kept.since,
        )  # fmt: skip
        ttl = REFRESH_SECONDS if secret else ACCESS_SECONDS * 2
        if not await self._vault.exchange(_grant_key(kept.grant), None, grant, ttl):
            raise Reused("The code was used before.", ended=True)
        return kept.grant, grant, self._refresh_token(kept.grant, 0, secret) if secret else ""

    async def add(self, grant: Grant) -> str:
        """The id of a new grant, for one access token."""
        id = new_secret()[:22]
        await self._vault.put(_grant_key(id), grant, ACCESS_SECONDS * 2)
        return id

    # Refresh tokens

    async def find(self, token: str) -> tuple[RefreshToken, Grant] | None:
        """The grant of a refresh token, whatever its generation; None for one that is not ours, or has ended."""
        said = self._vault.open(_REFRESH_KIND, token.removeprefix(_PREFIX), RefreshToken)
        grant = await self.get(said.grant) if said is not None else None
        return None if said is None or grant is None or not fits(said.secret, grant.proof) else (said, grant)

    async def get(self, id: str) -> Grant | None:
        """A grant; None for one that has ended."""
        return await self._vault.get(_grant_key(id), Grant)

    async def rotate(self, said: RefreshToken) -> str:
        """The refresh token that takes the place of another one.

        Raises:
            Reused: it's older than the previous one, which ends the grant.
            OAuthError: it's the previous one and its grace is over, or the grant has ended.
        """
        for _ in range(_TRIES):
            raw, now = await self._vault.raw(_grant_key(said.grant)), self._vault.clock()
            grant = read(raw, Grant)
            if raw is None or grant is None:
                break
            if said.generation == grant.generation - 1:
                if now - grant.rotated <= GRACE:
                    return self._refresh_token(said.grant, grant.generation, said.secret)
                raise OAuthError("invalid_grant", "A newer refresh token has replaced this one. Use that one.")
            if said.generation != grant.generation:
                text = "The refresh token was used before. Everything it gave has ended."
                raise await self._reused(said.grant, grant.subject, text)
            after = msgspec.structs.replace(grant, generation=grant.generation + 1, rotated=now)
            if await self._vault.exchange(_grant_key(said.grant), raw, after, REFRESH_SECONDS):
                return self._refresh_token(said.grant, after.generation, said.secret)
        raise OAuthError("invalid_grant", "The refresh token counts no more.")

    def _refresh_token(self, grant: str, generation: int, secret: str) -> str:
        return _PREFIX + self._vault.seal(_REFRESH_KIND, RefreshToken(grant, generation, secret))

    # Ends

    async def _reused(self, id: str, subject: str, text: str) -> Reused:
        raw = await self._vault.raw(_grant_key(id))
        there = raw is not None and read(raw, Grant) is not None
        ended = there and await self._vault.exchange(_grant_key(id), raw, TOMBSTONE, _USED_SECONDS)
        await self.end(id, subject)
        return Reused(text, ended=ended)

    def tell(self, address: str) -> None:
        """Somebody at an address has brought what was used before."""
        self._vault.refused(address)

    async def end(self, id: str, subject: str) -> None:
        """End a grant: its tokens count no more, on any worker, within a second."""
        # A tombstone, and not nothing: a code that is being redeemed just now must find the place taken.
        await self._vault.put(_grant_key(id), TOMBSTONE, _USED_SECONDS)
        await self._vault.tell(ENDED, f"{id} {subject}".encode())

    async def revoke_token(self, jti: str, subject: str, until: float) -> None:
        """End one access token that belongs to no grant."""
        await self._vault.put(f"oauth-revoked:{jti}", TOMBSTONE, max(1.0, until - self._vault.clock() + 120))
        await self._vault.tell(ENDED, f"- {subject}".encode())

    async def revoked(self, jti: str) -> bool:
        """Whether a token that belongs to no grant was revoked."""
        return await self._vault.raw(f"oauth-revoked:{jti}") is not None

    # Access tokens

    async def access_token(
        self, client: Client, subject: str, scopes: tuple[str, ...], resources: tuple[str, ...], *,
        grant: str = "", more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """The token reply's part about an access token (RFC 6749 §5.1, RFC 9068)."""
        now = int(self._vault.clock())
        claims: dict[str, Any] = {name: value for name, value in (more or {}).items() if name not in _RESERVED}
        claims |= {
            "iss": self._config.url,
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
            "access_token": await self._signing.sign(claims),
            "token_type": "Bearer",
            "expires_in": ACCESS_SECONDS,
            "scope": " ".join(scopes),
        }


def _code_key(code: str) -> str:
    return f"oauth-code:{digest(code)}"


def _grant_key(id: str) -> str:
    return f"oauth-grant:{id}"
