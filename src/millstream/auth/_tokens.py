"""Auth methods for an issuer's tokens: signed ones (JSON Web Tokens), and ones that only the issuer can verify (RFC
7662).

An issuer publishes its metadata: RFC 8414, or OpenID Connect Discovery. Requests go to issuers that the operator
configured. They may be on a private network.
"""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from millstream._http.client.pool import FetchedDocument, OutboundError, allow_any, check_url, fetch
from millstream._oauth import basic_credentials, metadata_urls
from millstream._override import override
from millstream._protocol.jsonrpc import MALFORMED, Json, decode_object
from millstream._server.functions.description import Names
from millstream._suggestions import suggest_keywords
from millstream._tasks import SingleFlight
from millstream.auth._jose import (
    ASYMMETRIC,
    RETRY_SECONDS,
    TENANT,
    FetchedKeys,
    FixedKeys,
    InvalidToken,
    PublicKey,
    TokenRules,
    judge,
    read_claims,
    read_keys,
    read_payload,
    shared_secret,
)
from millstream.auth._key_file import check_scopes
from millstream.auth._method import AuthMethod, Clock, Identity, Rejection, Unavailable

logger = logging.getLogger("millstream")

_MAX_AGE = 3600.0


_TENANTS = "It has several tenants: use the URL of yours, or list them with auth.oidc(…, tenants=[…])"


class Discovery(Struct, eq=False):
    """The metadata of one issuer, fetched on first use and cached."""

    issuer: str
    clock: Clock = monotonic
    template: str = ""
    """Issuer with `TENANT`, if its metadata is for several tenants."""
    _flight: SingleFlight[None] = field(default_factory=SingleFlight[None])
    _metadata: Json = {}
    _last_fetch: float = -inf
    _last_attempt: float = -inf
    _why: str = ""

    async def metadata(self) -> Json:
        """Return the issuer's metadata.

        Raises:
            Unavailable: The issuer doesn't respond, or the metadata is for another issuer.
        """
        now = self.clock()
        is_old = now - self._last_fetch > _MAX_AGE
        if is_old and (self._flight.runs("metadata") or now - self._last_attempt >= RETRY_SECONDS):
            self._last_attempt = now
            await self._flight.run("metadata", self._load)
        if not self._metadata:
            raise Unavailable("The authorization server isn't responding. Try again later.", self._why)
        return self._metadata

    def retry(self) -> None:
        """Allow an immediate retry if the last attempt failed."""
        self._last_attempt = self._last_fetch

    async def _load(self) -> None:
        said: list[str] = []
        for url in reversed(metadata_urls(self.issuer)):  # more issuers of these tokens have OpenID Connect
            try:
                found = decode_object((await ask_issuer(url)).body)
            except OutboundError as exc:
                said.append(f"{url}: {str(exc).rstrip('.')}")
                continue
            except MALFORMED:
                said.append(f"{url}: not issuer metadata")
                continue
            # RFC 8414 §3.3: otherwise it's the metadata of another server.
            named = found.get("issuer")
            if named == self.issuer or (named == self.template != ""):
                self._metadata, self._last_fetch = found, self.clock()
                return
            text = f"{url}: the issuer is {str(named)[:200]!r}. "
            said.insert(0, text + (_TENANTS if TENANT in str(named) else "Configure that exact URL"))
        self._why = (
            f"{said[0]}. Check the issuer's URL, {self.issuer}, and that this machine can reach it. Sign-ins retry "
            f"after {RETRY_SECONDS:g} seconds."
        )

    async def keys_url(self) -> str:
        """Return the URL of the issuer's keys.

        Raises:
            Unavailable: The metadata can't be fetched, or contains no valid URL.
        """
        url = (await self.metadata()).get("jwks_uri")
        if not isinstance(url, str):
            text = "The authorization server doesn't publish its keys."
            raise Unavailable(
                text, f"The metadata of {self.issuer} has no jwks_uri. Check that the URL is an OpenID Connect issuer."
            )
        try:
            check_url(url)
        except OutboundError as exc:
            raise Unavailable(str(exc)) from exc
        return url


def issuer_keys(issuer: str, template: str = "") -> FetchedKeys:
    """Return the keys that an issuer's metadata names."""
    discovery = Discovery(issuer, template=template)
    return FetchedKeys(discovery.keys_url, ask_issuer, retry=discovery.retry)


_MAX_BYTES = 512 * 1024
"""Maximum size of a document. A key set with certificates is the largest."""


async def ask_issuer(url: str) -> FetchedDocument:
    """Fetch a document from an issuer on any network."""
    return await fetch(url, is_allowed=allow_any, max_bytes=_MAX_BYTES)


_ANY_TENANT = "organizations"
"""Placeholder of the tenant in an Entra ID issuer's URL."""
TYPES = ("at+jwt", "jwt", "")
"""RFC 9068 requires ``at+jwt``. Most issuers send ``jwt`` or nothing."""


class IssuerMethod(AuthMethod):
    """Base class for the methods that accept one issuer's tokens."""

    def __init__(self, rules: TokenRules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self.resource = rules.url
        named = [each for each in rules.tenants if each != "*"] or [_ANY_TENANT]
        self.issuers = tuple(rules.issuer.replace(TENANT, each) for each in named)
        self.scopes = tuple(rules.scopes)
        self.scope_prefix = rules.scope_prefix

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a token."""
        found = await self.examine(credential)
        return found if isinstance(found, Identity) else None

    @override
    def serve_at(self, urls: Collection[str]) -> None:
        """See `AuthMethod.serve_at`."""
        if self.resource in self._rules.audiences:
            self._rules = replace(self._rules, audiences=tuple(dict.fromkeys((*self._rules.audiences, *urls))))

    @override
    def holds(self, id: str) -> bool:
        """Return True for every owner of this issuer's tokens, because the issuer doesn't report revocations."""
        before, tenant, after = self._rules.issuer.partition(TENANT)
        issuer = id.partition(" ")[0].partition("#")[0]  # a fragment may distinguish programs from people
        return issuer.startswith(before) and issuer.endswith(after) if tenant else issuer == before


class TokenMethod(IssuerMethod):
    """The signed tokens from one issuer."""

    def __init__(
        self,
        rules: TokenRules,
        keys: FixedKeys | FetchedKeys,
        *,
        algorithms: Collection[str],
        types: Sequence[str] = TYPES,
        clock: Clock = time.time,
    ) -> None:
        super().__init__(rules, clock)
        self._keys = keys
        if isinstance(keys, FetchedKeys):
            self.outages = (keys.outage,)
        self._algorithms = frozenset(algorithms)
        self._types = types
        self.guessable = not self._algorithms.issubset(ASYMMETRIC)  # people choose secrets

    @override
    async def examine(self, credential: str) -> Identity | Rejection:
        """Return the owner of a token, or why it isn't valid."""
        try:
            claims = await read_claims(credential, partial(self._find, credential), self._algorithms, self._types)
        except InvalidToken as exc:
            return exc.rejection()
        return judge(claims, self._rules, self._clock())

    async def _find(self, credential: str, kid: str | None, algorithm: str) -> list[PublicKey]:
        found = await self._keys.find(kid, algorithm)
        if not self._rules.tenants:
            return found
        # A key can belong to one of the tenants and sign only its tokens.
        issuer = read_payload(credential).get("iss")
        return [each for each in found if each.issuer in (None, issuer) or TENANT in (each.issuer or "")]

    @override
    def epoch(self) -> int:
        """Return a number that changes with the keys, because removing a key invalidates its tokens."""
        return self._keys.epoch

    @override
    async def prefetch(self) -> None:
        """Fetch the issuer's keys."""
        await self._keys.prefetch()
        found = self._keys.keys
        if not any(each.fits(algorithm) for each in found for algorithm in self._algorithms) and (
            found or isinstance(self._keys, FixedKeys)
        ):
            logger.warning(
                "No key of %s can verify a signature by one of the accepted algorithms (%s), so its tokens will be "
                "rejected. Check the key set and algorithms=.",
                self._rules.issuer,
                ", ".join(sorted(self._algorithms)),
            )


_EARLY_SECONDS = 5.0
"""Seconds before the endpoint is asked again about a token that isn't valid yet."""
_MAX_REQUESTS = 64
"""Maximum concurrent requests to the endpoint."""


class IntrospectedMethod(IssuerMethod):
    """Tokens that only their issuer can verify."""

    shows = True

    def __init__(
        self,
        rules: TokenRules,
        endpoint: str,
        *,
        client: str,
        secret: str,
        client_tokens: bool = False,
    ) -> None:
        super().__init__(rules, time.time)
        self._endpoint = endpoint
        self._headers = {"authorization": basic_credentials(client, secret)}
        self._client_tokens = client_tokens
        self._requests = SingleFlight[Identity | Rejection]()
        """Requests in progress. Callers with the same token share one."""

    @override
    async def examine(self, credential: str) -> Identity | Rejection:
        """Return the owner of a token, or why it isn't valid."""
        if len(self._requests) >= _MAX_REQUESTS and not self._requests.runs(credential):
            raise Unavailable("Too many sign-ins at once. Try again later.")
        return await self._requests.run(credential, lambda: self._ask(credential))

    async def _ask(self, credential: str) -> Identity | Rejection:
        form = urlencode({"token": credential, "token_type_hint": "access_token"}).encode()
        try:
            reply = await fetch(self._endpoint, form=form, headers=self._headers, is_allowed=allow_any)
            claims = decode_object(reply.body)
        except (OutboundError, *MALFORMED) as exc:
            text = "The issuer couldn't verify the token. Try again later."
            raise Unavailable(text, f"{self._endpoint}: {exc}") from exc
        kind = claims.get("token_type", "Bearer")
        if claims.get("active") is not True:
            # The endpoint is asked about it at most as often as about a valid one.
            return Rejection("The token isn't active.", seconds=self._rules.believed)
        if not isinstance(kind, str) or kind.lower() != "bearer":
            return Rejection("The token isn't a bearer token.", is_genuine=True, seconds=self._rules.believed)
        if self._client_tokens and "sub" not in claims and "username" not in claims and "client_id" in claims:
            # The client acts for itself, as in signed tokens (RFC 9068 §2.2). Introspection may omit `sub` for users,
            # too (RFC 7662 §2.2), so this is off by default.
            claims["sub"] = claims["client_id"]
        # The endpoint belongs to the issuer, so a missing `iss` means this one. `exp` is optional, and the token is
        # active now (RFC 7662 §2.2).
        now = self._clock()
        found = judge({"iss": self._rules.issuer, "exp": now + _MAX_AGE, **claims}, self._rules, now)
        return found if isinstance(found, Identity) else replace(found, seconds=found.seconds or _EARLY_SECONDS)


def several(name: str, given: Collection[str]) -> tuple[str, ...]:
    """Return a collection of strings as a tuple.

    Raises:
        TypeError: The value is a single string, or contains other types.
    """
    if isinstance(given, str) or not isinstance(given, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} must be a list: {name}=[{given!r}]")
    found = tuple(given)
    if wrong := [each for each in cast("tuple[object, ...]", found) if not isinstance(each, str)]:
        raise TypeError(f"{name} must be a list of strings, but {wrong[0]!r} isn't a string.")
    return found


def accepted_algorithms(given: Names, possible: Collection[str] = ASYMMETRIC) -> tuple[str, ...]:
    """Return the accepted signature algorithms.

    Raises:
        ValueError: One isn't possible.
        TypeError: It isn't a list of strings.
    """
    found = several("algorithms", given)
    if unknown := [each for each in found if each not in possible]:
        raise ValueError(f"The algorithm {unknown[0]!r} isn't supported here. Supported: {', '.join(possible)}.")
    return found


def inclusions(implied: Mapping[str, Collection[str]] | None) -> dict[str, tuple[str, ...]]:
    """Return the scopes that each scope includes.

    Raises:
        TypeError: `scope_includes` isn't a mapping of scopes to lists.
    """
    if implied is not None and not isinstance(implied, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "scope_includes must map scopes to the scopes that they include: "
            'scope_includes={"orders:write": ["orders:read"]}'
        )
    found: dict[str, tuple[str, ...]] = {}
    for scope, included in (implied or {}).items():
        if isinstance(included, str):
            raise TypeError(
                f"The scopes included in {scope!r} must be a list: scope_includes={{{scope!r}: [{included!r}]}}"
            )
        found[scope] = several("scope_includes", included)
    return found


def rules_of(
    issuer: str,
    audience: str | Names,
    scopes: Collection[str],
    implied: Mapping[str, Collection[str]] | None,
    *,
    believed: float = 60.0,
    tenants: Names = (),
    resource: str = "",
    client_ids: Names = (),
    scope_claims: Names = (),
    scope_prefix: str = "",
) -> TokenRules:
    """Return the rules for an issuer's tokens, from the arguments of ``auth.jwt``.

    Raises:
        ValueError: The issuer, the audience, or a scope is invalid.
        TypeError: An argument that must be a list of strings isn't one.
    """
    try:
        check_url(issuer)
    except OutboundError:
        given = "" if "@" in issuer else f", not {issuer!r}"  # the URL may contain a password
        raise ValueError(
            f"issuer must be an https URL, or an http URL of this machine, without a user name{given}."
        ) from None
    if "/.well-known/" in issuer:
        raise ValueError(
            f"issuer must be the part of the URL before /.well-known/: {issuer.partition('/.well-known/')[0]!r}."
        )
    audiences = (audience,) if isinstance(audience, str) and audience else several("audience", audience or ())
    clients = several("client_ids", client_ids)
    if not all(map(_is_name, audiences)) or not (audiences or clients):
        raise ValueError(
            "audience must match the tokens' aud claim: usually this server's public URL (such as "
            "https://mcp.example.com/mcp, without a fragment), or the value that your issuer uses. If its tokens have "
            "no aud, pass client_ids=[…], the clients whose tokens you accept."
        )
    if "account" in audiences and not clients:
        raise ValueError(
            "Keycloak adds the audience 'account' to the tokens of almost every client. Add an audience mapper for "
            "this server, or pass client_ids=[…], the clients whose tokens you accept."
        )
    if resource and (not _is_name(resource) or urlsplit(resource).scheme not in ("https", "http")):
        raise ValueError("resource must be this server's public URL, such as https://mcp.example.com/mcp.")
    return TokenRules(
        issuer,
        audiences,
        inclusions(implied),
        believed,
        clients,
        several("scope_claims", scope_claims),
        several("tenants", tenants),
        resource,
        scope_prefix,
        scopes=check_scopes(several("scopes", scopes)),
    )


def _is_name(text: str) -> bool:
    return bool(text) and not urlsplit(text).fragment and " " not in text and text.isprintable() and '"' not in text


@suggest_keywords
def jwt(  # noqa: PLR0913  the options of an issuer
    *,
    issuer: str,
    audience: str | Names = (),
    jwks: str | Mapping[str, Any] = "",
    secret: str = "",
    algorithms: Names = (),
    scopes: Names = (),
    scope_includes: Mapping[str, Names] | None = None,
    resource: str = "",
    client_ids: Names = (),
    scope_claims: Names = (),
    scope_prefix: str = "",
) -> AuthMethod:
    """Accept signed tokens (JSON Web Tokens, RFC 7519) from an issuer.

    Args:
        issuer: The issuer's exact identifier, as in the claim ``iss``.
        audience: This server's public URL, such as ``https://mcp.example.com/mcp``, or what the issuer's tokens have in
            ``aud`` instead. A list if there are several. Tokens for any other URL are rejected, even if it starts with
            this one.
        jwks: URL of the issuer's public keys, or the key set itself.
        secret: A secret shared with the issuer, at least 32 bytes long, instead of public keys.
        algorithms: Accepted signature algorithms, by default all asymmetric ones, or HS256 with a secret.
        scopes: Scopes that every caller needs.
        scope_includes: Mapping of a scope to the scopes that it includes.
        resource: This server's public URL, if `audience` isn't that.
        client_ids: Ids of the accepted clients, by default all. Without `audience`, tokens must have no ``aud``.
        scope_claims: Claims with scopes, such as ``permissions`` or ``realm_access.roles``. By default ``scope``, or
            ``scp``.
        scope_prefix: Prefix that the issuer expects on the scopes that a client requests, such as ``api://notes/``.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        >>> auth.jwt(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     jwks="https://id.example.com/keys",
        ... )
    """
    if bool(jwks) == bool(secret):
        raise ValueError("auth.jwt() requires either jwks=, the issuer's keys, or secret=, a shared secret.")
    if secret:
        allowed = accepted_algorithms(algorithms, ("HS256", "HS384", "HS512")) or ("HS256",)
    else:
        allowed = accepted_algorithms(algorithms) or ASYMMETRIC
    keys: FixedKeys | FetchedKeys
    if secret:
        keys = FixedKeys([shared_secret(secret)])
    elif isinstance(jwks, str):
        if "://" not in jwks:
            raise ValueError("jwks must be the URL of the issuer's keys, or a key set as a dict: json.load(file).")
        keys = FetchedKeys(check_url(jwks).geturl(), ask_issuer)
    else:
        keys = FixedKeys(read_keys(jwks))
    rules = rules_of(
        issuer,
        audience,
        scopes,
        scope_includes,
        resource=resource,
        client_ids=client_ids,
        scope_claims=scope_claims,
        scope_prefix=scope_prefix,
    )
    return TokenMethod(rules, keys, algorithms=allowed)


@suggest_keywords
def introspection(  # noqa: PLR0913  the options of an issuer
    *,
    issuer: str,
    audience: str | Names = (),
    endpoint: str,
    client: str,
    secret: str,
    client_tokens: bool = False,
    scopes: Names = (),
    scope_includes: Mapping[str, Names] | None = None,
    resource: str = "",
    client_ids: Names = (),
    scope_claims: Names = (),
    scope_prefix: str = "",
) -> AuthMethod:
    """Accept tokens that the issuer verifies at its introspection endpoint (RFC 7662).

    Args:
        issuer: The issuer's exact identifier.
        audience: As for `jwt`. The endpoint's response must contain it.
        endpoint: URL of the introspection endpoint.
        client: This server's client id at the issuer.
        secret: Secret for `client`.
        client_tokens: Whether a token without a user (neither ``sub`` nor ``username``) belongs to its client. Set it
            only if the issuer includes the user in every user's token; otherwise all users of a client would share
            one identity.
        scopes: As for `jwt`.
        scope_includes: As for `jwt`.
        resource: As for `jwt`.
        client_ids: As for `jwt`.
        scope_claims: As for `jwt`.
        scope_prefix: As for `jwt`.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        >>> auth.introspection(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     endpoint="https://id.example.com/introspect",
        ...     client="shop",
        ...     secret=os.environ["SHOP_SECRET"],
        ... )
    """
    url = check_url(endpoint).geturl()
    if not (client and secret):
        raise ValueError(
            "auth.introspection() requires client= and secret=, this server's credentials at the endpoint."
        )

    rules = rules_of(
        issuer,
        audience,
        scopes,
        scope_includes,
        believed=30.0,
        resource=resource,
        client_ids=client_ids,
        scope_claims=scope_claims,
        scope_prefix=scope_prefix,
    )
    return IntrospectedMethod(rules, url, client=client, secret=secret, client_tokens=client_tokens)
