"""Codes, grants, and tokens, and the endpoints that issue, introspect, and revoke tokens.

A code is valid once. Using it again revokes its grant, because one of the two uses was a theft. A refresh token
contains its grant's id and its generation, so reuse is detected. The previous generation works for another minute and
returns the current token, because its response may have been lost, and some clients refresh on several nodes at once.
After that it's rejected, but only an older generation revokes the grant.

Access tokens are signed with keys that are rotated monthly.

`POST /token` (OAuth 2.1 §3.2) exchanges codes, refresh tokens, and client credentials for access tokens. `POST
/introspect` (RFC 7662) returns whether a token is active, and its claims. `POST /revoke` (RFC 7009) revokes a token
together with its grant.
"""

import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from typing import Any

from joserfc.jwk import ECKey
from msgspec import Struct, field
from msgspec.structs import replace

from millstream._confidential import Confidential
from millstream._http.message import HttpRequest, Response
from millstream._oauth import JWT_BEARER, s256
from millstream._protocol.jsonrpc import Json
from millstream._server.calls.vault import TOMBSTONE, Vault, digest, new_secret, read
from millstream._tasks import SingleFlight
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import ACCESS_SECONDS, REFRESH_SECONDS, IssuerConfig
from millstream.auth._authorization_server.records import (
    CLIENT,
    CODE,
    REFRESH,
    AuthorizationRequest,
    Code,
    Grant,
    OAuthClient,
    OAuthError,
    Parameters,
    fits,
    form_of,
    reply,
)
from millstream.auth._jose import (
    Claims,
    InvalidToken,
    PublicKey,
    new_private_key,
    read_claims,
    read_keys,
    select_keys,
    sign,
)
from millstream.auth.providers import User

logger = logging.getLogger("millstream")

SIGNS = 30 * 86_400.0
"""Seconds that a key signs tokens."""
AHEAD = 86_400.0
"""Seconds that a key is published before it signs."""
AFTER = 7200.0
"""Seconds that a key stays published after it stops signing. It's longer than a token's lifetime."""
_FRESH = 60.0
"""Seconds between checks for changes by other workers."""
_PAUSE = 1.0
_KEY, _KIND = "oauth-keys:signing", b"oauth signing keys"
_TTL = 10 * 365 * 86_400.0
_TRIES = 8


class SigningKey(Confidential, Struct, frozen=True):
    """A signing key."""

    kid: str
    key: Mapping[str, Any]
    """Private key (RFC 7517)."""
    begins: float
    """Time from which it signs, until the next key's."""


class TokenSigner(Confidential, Struct, eq=False):
    """Signs tokens with the current key.

    Keys are created on first use, shared in the store, and rotated every month. A new key is published a day before its
    first use, and an old one until its tokens have expired, so resource servers can cache the public keys for hours.
    Stored keys are sealed with the server's key ring, so access to the store isn't enough to sign.
    """

    _vault: Vault
    _keys: tuple[SigningKey, ...] = ()
    _loaded: dict[str, ECKey] = {}
    _public: list[PublicKey] = []
    _looked: float = -inf
    _flight: SingleFlight[None] = field(default_factory=SingleFlight[None])
    epoch: int = 0
    """Number that changes when a key is removed."""

    async def sign(self, claims: Claims) -> str:
        """Return a signed access token."""
        await self._refresh(_FRESH)
        now = self._vault.clock()
        # There may be no current key yet, if a worker whose clock is ahead has just created the first one.
        kid = ([each for each in self._keys if each.begins <= now] or self._keys[:1])[-1].kid
        return sign(claims, self._loaded[kid], kid)

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the public keys that may have made a signature. Checks for new keys if the id is unknown."""
        await self._refresh(_FRESH)
        found = select_keys(self._public, kid, algorithm)
        if not found:
            await self._refresh(_PAUSE)
            found = select_keys(self._public, kid, algorithm)
        return found

    async def public(self) -> Json:
        """Return the public key set."""
        await self._refresh(_FRESH)
        return self._public_set()

    def _public_set(self) -> Json:
        return {"keys": [each.as_dict(private=False) for each in self._loaded.values()]}

    async def _refresh(self, age: float) -> None:
        now = self._vault.clock()
        if now - self._looked >= age:
            await self._flight.run("keys", self._load)

    async def _load(self) -> None:
        for _ in range(_TRIES):
            raw, now = await self._vault.kv.get(_KEY), self._vault.clock()
            kept = self._vault.open(_KIND, raw, tuple[SigningKey, ...])
            if raw and not kept:
                logger.warning(
                    "The token signing keys were sealed with another MILLSTREAM_SECRET_KEY. Created new keys; issued "
                    "tokens become invalid. To keep tokens valid, don't change MILLSTREAM_SECRET_KEY."
                )
            keys = advance(kept or (), now)
            if keys == kept or await self._vault.exchange(_KEY, raw, self._vault.seal(_KIND, keys).encode(), _TTL):
                break
        else:
            raise RuntimeError("The token signing keys change too fast to be read.")
        self._looked = now
        if keys == self._keys:
            return
        if {each.kid for each in self._keys} - {each.kid for each in keys}:
            self.epoch += 1
        self._keys = keys
        self._loaded = {each.kid: ECKey.import_key(dict(each.key)) for each in keys}
        self._public = read_keys(self._public_set())


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
"""Seconds that a replaced refresh token still works."""
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


class RefreshToken(Confidential, Struct, frozen=True, array_like=True):
    """The sealed content of a refresh token."""

    grant: str
    generation: int
    secret: str


def _code_key(code: str) -> str:
    return f"oauth-code:{digest(code)}"


def _revoked_key(claims: Claims) -> str:
    """Return the store key that records the revocation of an access token without a grant."""
    return f"oauth-revoked:{claims.get('jti')}"


def _grant_key(id: str) -> str:
    return f"oauth-grant:{id}"


_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
"""Syntax of a code verifier (RFC 7636 §4.1)."""
_Answer = Mapping[str, object]


class TokenEndpoints(Struct, frozen=True):
    """All grants, the endpoints for tokens, and the guard's check of our own tokens."""

    config: IssuerConfig
    vault: Vault
    signing: TokenSigner
    clients: Clients

    # Codes

    async def make_code(self, authorization: AuthorizationRequest, user: User, scopes: tuple[str, ...]) -> str:
        """Create a code for a request that a user has approved."""
        code = new_secret()
        until = self.vault.clock() + CODE_SECONDS
        client, resources = authorization.client, authorization.resources
        grant = Grant(client, user.subject, user.name, user.login, scopes, resources, since=user.since)
        kept = Code(authorization, new_secret()[:22], grant, until)
        await self.vault.put(_code_key(code), kept, _USED_SECONDS)
        return code

    # Refresh tokens

    async def find_refresh_token(self, token: str) -> tuple[RefreshToken, Grant] | None:
        """Return the content and grant of a refresh token of any generation, or None if it's unknown or revoked."""
        said = self.vault.open(_REFRESH_KIND, token.removeprefix(_PREFIX), RefreshToken)
        if said is None:
            return None
        grant = await self.vault.get(_grant_key(said.grant), Grant)
        return (said, grant) if grant is not None and fits(said.secret, grant.proof) else None

    async def rotate(self, said: RefreshToken) -> str:
        """Return the successor of a refresh token.

        Raises:
            TokenReuse: The token is older than the previous one, which revokes the grant.
            OAuthError: The token was replaced and its grace period is over, or the grant was revoked.
        """
        for _ in range(_TRIES):
            raw, now = await self.vault.kv.get(_grant_key(said.grant)), self.vault.clock()
            grant = read(raw, Grant)
            if grant is None:
                break
            if said.generation == grant.generation - 1:
                if now - grant.rotated_at <= GRACE:
                    return self._refresh_token(said.grant, grant.generation, said.secret)
                raise OAuthError("invalid_grant", "This refresh token was replaced. Use the newer one.")
            if said.generation != grant.generation:
                text = "The refresh token has already been used. Its grant and all tokens are revoked. Sign in again."
                raise await self._handle_reuse(said.grant, grant.subject, text)
            after = replace(grant, generation=grant.generation + 1, rotated_at=now)
            if await self.vault.exchange(_grant_key(said.grant), raw, after, REFRESH_SECONDS):
                return self._refresh_token(said.grant, after.generation, said.secret)
        raise OAuthError("invalid_grant", "The refresh token is no longer valid. Sign in again.")

    def _refresh_token(self, grant: str, generation: int, secret: str) -> str:
        return _PREFIX + self.vault.seal(_REFRESH_KIND, RefreshToken(grant, generation, secret))

    # Revocation

    async def _handle_reuse(self, id: str, subject: str, text: str) -> TokenReuse:
        raw = await self.vault.kv.get(_grant_key(id))
        ended = read(raw, Grant) is not None and await self.vault.exchange(
            _grant_key(id), raw, TOMBSTONE, _USED_SECONDS
        )
        await self.end_grant(id, subject)
        return TokenReuse(text, ended=ended)

    async def end_grant(self, id: str, subject: str) -> None:
        """Revoke a grant. Its tokens become invalid on the workers within about a second."""
        # A tombstone makes a concurrent redemption of the code fail.
        await self.vault.put(_grant_key(id), TOMBSTONE, _USED_SECONDS)
        await self._announce(subject)

    async def _announce(self, subject: str) -> None:
        await self.vault.bus.publish(ENDED, f"{self.config.url} {subject}".encode())

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
    ) -> Json:
        """Create an access token and return its part of the token response (RFC 6749 §5.1, RFC 9068)."""
        now = int(self.vault.clock())
        claims: Json = {name: value for name, value in (more or {}).items() if name not in _RESERVED}
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

    # Issued tokens

    async def user_of(self, claims: Claims) -> User | bool:
        """Return the user of an access token, True for a token without one, or False if it was revoked."""
        id = claims.get("grant_id")
        if id is not None:
            grant = await self.vault.get(_grant_key(str(id)), Grant)
            return (grant and self.config.user_of_grant(grant)) or False
        client = str(claims.get("client_id"))
        known = self.config.clients.get(client) or await self.config.provider.find_client(client)
        return known is not None and await self.vault.kv.get(_revoked_key(claims)) is None

    async def introspect(self, request: HttpRequest) -> Response:
        """Return whether a token is active. Only clients that authenticate can ask: configured ones about any token,
        and others about their own."""
        client, token = await self.clients.read_token(request)
        if client.method == "none":
            raise OAuthError("invalid_client", "Only authenticated clients can introspect tokens.", 401)
        said = await self._claims_of(token)
        if said is None or (client.source != "given" and said["client_id"] != client.id):
            return reply({"active": False})
        return reply({"active": True, **said})

    async def _claims_of(self, token: str) -> Json | None:
        found = await self.find_refresh_token(token)
        if found is not None:
            said, grant = found
            if said.generation != grant.generation or self.config.user_of_grant(grant) is None:
                return None
            return {
                "client_id": grant.client,
                "sub": grant.subject,
                "scope": " ".join(grant.scopes),
                "iss": self.config.url,
                "token_type": "refresh_token",
            }
        claims = await self.claims(token)
        if claims is None or claims["exp"] <= self.vault.clock() or await self.user_of(claims) is False:
            return None
        return {**claims, "token_type": "Bearer"}

    async def claims(self, token: str) -> Json | None:
        """Return the claims of one of our access tokens, expired or not, or None for any other text."""
        try:
            claims = await self.read(token)
        except InvalidToken:
            return None
        return claims if claims.get("iss") == self.config.url else None

    async def read(self, token: str) -> Json:
        """Return the claims of a token that is signed with our keys.

        Raises:
            InvalidToken: It isn't such a token.
        """
        return await read_claims(token, self.signing.find, ("ES256",), ("at+jwt",))

    async def revoke(self, request: HttpRequest) -> Response:
        """Revoke a token and its grant. Also succeeds for unknown tokens."""
        client, token = await self.clients.read_token(request)
        if (found := await self.find_refresh_token(token)) is not None:
            said, grant = found
            if grant.client == client.id:
                await self.end_grant(said.grant, grant.subject)
        elif (claims := await self.claims(token)) is not None and claims.get("client_id") == client.id:
            if "grant_id" in claims:
                await self.end_grant(claims["grant_id"], claims["sub"])
            else:
                seconds = max(1.0, claims["exp"] - self.vault.clock() + 120)
                await self.vault.put(_revoked_key(claims), TOMBSTONE, seconds)
                await self._announce(claims["sub"])
        return reply({})

    # The token endpoint

    async def post(self, request: HttpRequest) -> Response:
        """Handle `POST /token`: return tokens for a grant."""
        form = form_of(request)
        kind = form.get("grant_type")
        if not kind:
            raise OAuthError("invalid_request", "grant_type is missing.")
        by_type: dict[str, Callable[[OAuthClient, Parameters], Awaitable[_Answer]]] = {
            CODE: self._from_code,
            REFRESH: self._from_refresh_token,
            CLIENT: self._from_client,
            **({JWT_BEARER: self._from_identity} if self.config.identities else {}),
        }
        give = by_type.get(kind)
        if give is None:
            raise OAuthError("unsupported_grant_type", f"grant_type must be one of {', '.join(by_type)}.")
        client = await self.clients.authenticate(request, form)
        if kind not in client.grant_types:
            raise OAuthError("unauthorized_client", f"This client isn't allowed to use {kind}.")
        try:
            return reply(await give(client, form))
        except TokenReuse as exc:
            if exc.ended:  # log once per grant, so that repeated attempts don't fill the log
                self.vault.report_failure(request.peer)
            raise

    async def _from_code(self, client: OAuthClient, form: Parameters) -> _Answer:
        code = form.get("code")
        if not code or not _VERIFIER.fullmatch(form.get("code_verifier")):
            raise OAuthError("invalid_request", "Send code, and a code_verifier of 43 to 128 characters.")
        raw = await self.vault.kv.get(_code_key(code))
        kept = read(raw, Code)
        if kept is None or kept.authorization.client != client.id:
            raise OAuthError("invalid_grant", "The code is unknown.")
        check_redirect(kept.authorization.redirect_uri, form, named=kept.authorization.named_redirect)
        check_verifier(form, kept.authorization.challenge)
        resources = self._select_resources(form, kept.authorization.resources)
        used = replace(kept, used=True)
        if kept.used or not await self.vault.exchange(_code_key(code), raw, used, _USED_SECONDS):
            raise await self._handle_reuse(kept.id, kept.grant.subject, "The code has already been used.")
        if kept.until < self.vault.clock():
            raise OAuthError("invalid_grant", "The code has expired.")
        grant, ttl, refresh = kept.grant, ACCESS_SECONDS * 2, ""
        if REFRESH in client.grant_types:
            secret = new_secret()
            grant, ttl = replace(grant, proof=digest(secret)), REFRESH_SECONDS
            refresh = self._refresh_token(kept.id, 0, secret)
        if not await self.vault.exchange(_grant_key(kept.id), None, grant, ttl):
            raise TokenReuse("The code has already been used.", ended=True)
        await self.clients.renew(client)
        return await self._answer(client, kept.id, grant, grant.scopes, resources, refresh=refresh)

    async def _from_refresh_token(self, client: OAuthClient, form: Parameters) -> _Answer:
        found = await self.find_refresh_token(form.get("refresh_token"))
        if found is None or found[1].client != client.id:
            raise OAuthError("invalid_grant", "The refresh token is unknown or no longer valid. Sign in again.")
        said, grant = found
        # Whatever can refuse the request comes before `rotate`, because a token that's used up can't be sent again. A
        # user who may no longer sign in has no use for the grant, so it ends.
        user = self.config.user_of_grant(grant)
        if user is None:
            await self.end_grant(said.grant, grant.subject)
            raise OAuthError("invalid_grant", "The user is no longer allowed to sign in.")
        scopes = self.config.known_scopes(form.get("scope"), grant.scopes) or grant.scopes
        if not set(scopes) <= set(grant.scopes):
            raise OAuthError("invalid_scope", "A refresh can't add scopes to the grant.")
        resources = self._select_resources(form, grant.resources)
        # Scopes that the user has lost since are left out. That isn't the client's mistake, so it's no error.
        scopes = await self.config.grantable(user, client, scopes)
        refresh = await self.rotate(said)
        await self.clients.renew(client)
        return await self._answer(client, said.grant, grant, scopes, resources, refresh=refresh)

    async def _from_client(self, client: OAuthClient, form: Parameters) -> _Answer:
        if client.method == "none":
            raise OAuthError(
                "unauthorized_client", "Only a client with a secret or keys can use the client_credentials grant."
            )
        asked, most = form.get("scope"), {*self.config.scopes, *client.scopes}
        # Clients often request every scope that a server lists; the response contains the actual ones (RFC 6749 §3.3).
        wanted = self.config.requested_scopes(asked) if asked else client.scopes
        if asked and most.isdisjoint(asked.split()):
            raise OAuthError("invalid_scope", "This client isn't allowed to request any of these scopes.")
        scopes = tuple(each for each in dict.fromkeys((*self.config.scopes, *wanted)) if each in most)
        resources = self.config.requested_resources(form.all("resource"))
        return await self.access_token(client, client.id, scopes, resources)

    async def _from_identity(self, client: OAuthClient, form: Parameters) -> _Answer:
        if client.method == "none":
            raise OAuthError(
                "unauthorized_client", "Only a client with a secret or keys can use grants from identity providers."
            )
        assertion = form.get("assertion")
        if not assertion:
            raise OAuthError("invalid_request", "assertion is missing.")
        said, claims = await self.clients.read_grant(assertion, client)
        granted = self.config.requested_resources(said.resources)
        resources = self._select_resources(form, granted)
        asked, there = form.get("scope").split(), self.config.existing_scopes()
        if asked and {*said.scopes, *self.config.scopes}.isdisjoint(asked):
            raise OAuthError("invalid_scope", "The identity provider's grant has none of these scopes.")
        wanted = [each for each in said.scopes if each in there and (not asked or each in asked)]
        user = User(said.subject, said.name, self.config.identities[said.login].scopes, said.since)
        scopes = await self.config.grantable(user, client, tuple(dict.fromkeys((*self.config.scopes, *wanted))))
        if not await self.clients.spend("oauth-jag", claims):
            raise OAuthError("invalid_grant", "The identity provider's grant has already been used.")
        grant = replace(said, scopes=scopes, resources=granted)
        id = new_secret()[:22]
        await self.vault.put(_grant_key(id), grant, ACCESS_SECONDS * 2)
        return await self._answer(client, id, grant, scopes, resources, refresh="")

    async def _answer(
        self,
        client: OAuthClient,
        id: str,
        grant: Grant,
        scopes: tuple[str, ...],
        resources: tuple[str, ...],
        *,
        refresh: str,
    ) -> _Answer:
        user = self.config.user_of_grant(grant)
        more: Mapping[str, object] = {} if user is None else await self.config.claims(user, client)
        token = await self.access_token(client, grant.subject, scopes, resources, grant=id, more=more)
        return {**token, "refresh_token": refresh} if refresh else token

    def _select_resources(self, form: Parameters, granted: tuple[str, ...]) -> tuple[str, ...]:
        """Return the resources of the token: the requested ones, or all granted ones (RFC 8707 §2.2)."""
        if not form.all("resource"):
            return granted
        asked = self.config.requested_resources(form.all("resource"))
        if not set(asked) <= set(granted):
            raise OAuthError("invalid_target", "The grant isn't valid for this resource.")
        return asked


def check_verifier(form: Parameters, challenge: str) -> None:
    """Check the code verifier of a request against a challenge (RFC 7636 §4.6).

    Raises:
        OAuthError: The verifier is wrong or missing.
    """
    verifier = form.get("code_verifier")
    if not _VERIFIER.fullmatch(verifier):
        raise OAuthError("invalid_request", "Send a code_verifier of 43 to 128 characters.")
    if not hmac.compare_digest(s256(verifier), challenge):
        raise OAuthError("invalid_grant", "code_verifier doesn't match the code_challenge.")


def check_redirect(kept: str, form: Parameters, *, named: bool) -> None:
    """Check that a redirect URI, if sent, equals the one in the authorization request. OAuth 2.1 clients omit it.

    Raises:
        OAuthError: The URIs differ.
    """
    given = form.get("redirect_uri")
    if given and (given != kept or not named):
        raise OAuthError("invalid_grant", "redirect_uri doesn't match the authorization request.")
