"""Grants: what a user has allowed a client. A code is exchanged for a grant, which issues tokens until it's revoked.

A code is valid once. Using it again revokes its grant, because one of the two uses was a theft. A refresh token
contains its grant's id and its generation, so reuse is detected. The previous generation works for another minute and
returns the current token, because its response may have been lost, and some clients refresh on several nodes at once.
After that it's refused, but only an older generation revokes the grant.

Access tokens are signed with keys that are rotated every month.
"""

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from millstream._tasks import SingleFlight
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import ACCESS_SECONDS, REFRESH_SECONDS, IssuerConfig
from millstream.auth._authorization_server.records import (
    REFRESH,
    AuthorizationRequest,
    Code,
    Grant,
    OAuthClient,
    OAuthError,
    digest,
    fits,
    new_secret,
)
from millstream.auth._authorization_server.tickets import TOMBSTONE, Vault, read
from millstream.auth._jose import (
    PublicKey,
    load_private_key,
    new_private_key,
    public_part,
    read_keys,
    select_keys,
    sign,
)
from millstream.auth.providers import User

logger = logging.getLogger("millstream")

SIGNS = 30 * 86_400.0
"""Seconds for which a key signs tokens."""
AHEAD = 86_400.0
"""Seconds for which a key is published before it signs."""
AFTER = 7200.0
"""Seconds for which a key is published after it stops signing; exceeds the lifetime of a token."""
_FRESH = 60.0
"""Seconds between checks for changes by other workers."""
_PAUSE = 1.0
_KEY, _KIND = "oauth-keys:signing", b"oauth signing keys"
_TTL = 10 * 365 * 86_400.0
_TRIES = 8


class SigningKey(Struct, frozen=True):
    """A signing key."""

    kid: str
    key: Mapping[str, Any]
    """Private key (RFC 7517)."""
    begins: float
    """Time from which it signs, until the next key's."""


class TokenSigner:
    """Signs tokens with the current key.

    Keys are created on first use, shared in the store, and rotated every month. A new key is published a day before its
    first use, and an old one until its tokens have expired, so resource servers can cache the public keys for hours.
    Stored keys are sealed with the server's key ring, so access to the store isn't enough to sign.
    """

    def __init__(self, vault: Vault) -> None:
        # Configuration
        self._vault = vault
        # State
        self._keys: tuple[SigningKey, ...] = ()
        self._public: list[PublicKey] = []
        self._looked = float("-inf")
        self._loaded: dict[str, Any] = {}
        self._flight = SingleFlight[None]()
        self.epoch: int = 0
        """Number that changes when a key is removed."""

    async def sign(self, claims: Mapping[str, Any], typ: str = "at+jwt") -> str:
        """Return a signed token."""
        await self._refresh(_FRESH)
        now = self._vault.clock()
        # No key may have begun yet, if a worker whose clock is ahead has just created the first one.
        key = ([each for each in self._keys if each.begins <= now] or self._keys[:1])[-1]
        private = self._loaded.get(key.kid)
        if private is None:
            private = self._loaded[key.kid] = load_private_key(key.key)
        return sign(claims, private, key.kid, typ)

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the public keys that may have made a signature. Checks for new keys if the id is unknown."""
        await self._refresh(_FRESH)
        found = select_keys(self._public, kid, algorithm)
        if not found:
            await self._refresh(_PAUSE)
            found = select_keys(self._public, kid, algorithm)
        return found

    async def public(self) -> dict[str, Any]:
        """Return the public key set."""
        await self._refresh(_FRESH)
        return {"keys": [public_part(each.key) for each in self._keys]}

    async def _refresh(self, age: float) -> None:
        now = self._vault.clock()
        if now - self._looked >= age:
            await self._flight.run("keys", self._load)

    async def _load(self) -> None:
        for _ in range(_TRIES):
            raw, now = await self._vault.kv.get(_KEY), self._vault.clock()
            kept = self._vault.open(_KIND, raw.decode("latin-1"), tuple[SigningKey, ...]) if raw else None
            if raw and not kept:
                logger.warning(
                    "The token signing keys were sealed with another MILLSTREAM_SECRET_KEY. Created new keys; issued "
                    "tokens become invalid. To keep tokens valid, don't change MILLSTREAM_SECRET_KEY."
                )
            keys = advance(kept or (), now)
            if keys == kept:
                self._use(keys, now)
                return
            sealed = self._vault.seal(_KIND, keys).encode()
            if await self._vault.exchange(_KEY, raw, sealed, _TTL):
                self._use(keys, now)
                return
        raise RuntimeError("The token signing keys change too fast to be read.")

    def _use(self, keys: tuple[SigningKey, ...], now: float) -> None:
        self._looked = now
        if keys == self._keys:
            return
        if {each.kid for each in self._keys} - {each.kid for each in keys}:
            self.epoch += 1
        self._keys = keys
        self._loaded = {}
        self._public = read_keys({"keys": [public_part(each.key) for each in keys]})


def advance(keys: tuple[SigningKey, ...], now: float) -> tuple[SigningKey, ...]:
    """Return the keys for the time `now`, in the order in which they sign: drop expired keys, and add new ones."""
    following = (*keys[1:], None)[: len(keys)]
    kept = tuple(
        each for each, after in zip(keys, following, strict=True) if after is None or after.begins + AFTER > now
    )
    if not kept:
        return (_make(now),)
    newest = kept[-1]
    if now >= newest.begins + SIGNS - AHEAD:
        return (*kept, _make(max(now + AHEAD, newest.begins + SIGNS)))
    return kept


def _make(begins: float) -> SigningKey:
    kid = new_secret()[:16]
    return SigningKey(kid, new_private_key(kid), begins)


CODE_SECONDS = 60.0
GRACE = 60.0
"""Seconds for which a replaced refresh token still works."""
ENDED = "oauth-ended"
"""Topic for revocations between workers: the id of the principal."""
_USED_SECONDS = 3600.0
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
        client, resources = authorization.client, authorization.resources
        grant = Grant(client, user.subject, user.name, login, scopes, resources, since=user.since)
        kept = Code(authorization, new_secret()[:22], grant, until)
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
            raise await self._handle_reuse(kept.id, kept.grant.subject, "The code has already been used.")
        if kept.until < self.vault.clock():
            raise OAuthError("invalid_grant", "The code has expired.")
        client = await self.clients.find(kept.grant.client)
        refreshable = client is not None and REFRESH in client.grant_types
        secret = new_secret() if refreshable else ""
        grant = msgspec.structs.replace(kept.grant, proof=digest(secret) if secret else "")
        ttl = REFRESH_SECONDS if secret else ACCESS_SECONDS * 2
        if not await self.vault.exchange(_grant_key(kept.id), None, grant, ttl):
            raise TokenReuse("The code has already been used.", ended=True)
        return kept.id, grant, self._refresh_token(kept.id, 0, secret) if secret else ""

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
        await self._announce(subject)

    async def revoke_token(self, jti: str, subject: str, until: float) -> None:
        """Revoke an access token without a grant."""
        await self.vault.put(f"oauth-revoked:{jti}", TOMBSTONE, max(1.0, until - self.vault.clock() + 120))
        await self._announce(subject)

    async def _announce(self, subject: str) -> None:
        await self.vault.bus.publish(ENDED, f"{self.config.url} {subject}".encode())

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
