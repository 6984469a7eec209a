"""JSON Web Tokens (RFC 7515, 7519) with joserfc: signatures, the rules for claims, and the keys of issuers.

A token's header is read first, because the token may choose neither its algorithm nor its key. Keys that a token
contains or references (`jwk`, `jku`, `x5c`, `x5u`) are ignored.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, TypeGuard, cast

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OctKey, OKPKey, RSAKey
from msgspec import UNSET, Struct, field
from msgspec.structs import replace

from millstream._http.client.pool import FetchedDocument, OutboundError
from millstream._protocol.json_schema import is_array, is_object, members
from millstream._protocol.jsonrpc import MALFORMED, Json, decode_object
from millstream._protocol.principal import EVERYTHING, Principal
from millstream._tasks import SingleFlight
from millstream._text import pluralize
from millstream._troubles import LogOnce
from millstream.auth._method import Clock, Identity, Rejection, Unavailable, quote

Claims = Mapping[str, Any]
"""The claims of a token, by name."""

LEEWAY = 60.0
"""Allowed clock skew in seconds."""
_BELIEVED = 60.0
"""Seconds that a verdict is cached by default."""
_MAX_TEXT = 512


class TokenRules(Struct, frozen=True):
    """Claims that a token must have."""

    issuer: str
    """Value of ``iss``. If there are `tenants`, the claim ``tid`` replaces `TENANT` in it."""
    audiences: Collection[str]
    """Accepted values of ``aud``. A token must have one of them. If there are none, ``aud`` must be missing."""
    implied: Mapping[str, Collection[str]] = {}
    """Scope -> the scopes that it includes."""
    believed: float = _BELIEVED
    """Seconds that a verdict is cached."""
    clients: Collection[str] = ()
    """Accepted client ids. A token must have one of them. If there are none, tokens of every client are accepted."""
    scope_claims: Collection[str] = ()
    """Names of claims with scopes; ``scope`` or ``scp`` by default."""
    tenants: Collection[str] = ()
    """Accepted values of ``tid``. A token must have one of them. ``*`` accepts any."""
    resource: str = ""
    """URL of the MCP endpoint for clients, if no audience is one."""
    scope_prefix: str = ""
    """Prefix that the issuer expects on the scopes that a client requests."""
    scopes: Collection[str] = ()
    """Scopes that every caller needs."""
    id_tokens: bool = False
    """Whether ID tokens are expected, instead of access tokens."""

    @property
    def url(self) -> str:
        """URL of the MCP endpoint for clients, or an empty string if it's unknown."""
        return self.resource or next((each for each in self.audiences if each.startswith(("https://", "http://"))), "")

    def issuer_of(self, claims: Claims) -> str:
        """Return the issuer that a token must have, or an empty string if its tenant isn't accepted."""
        tenant = claims.get("tid")
        if not self.tenants:
            return self.issuer
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant) or {tenant, "*"}.isdisjoint(self.tenants):
            return ""
        return self.issuer.replace(TENANT, tenant)

    def audience_flaw(self, claims: Claims) -> Rejection | None:
        """Return why a token isn't for this server, or None if it is."""
        given = claims.get("aud")
        client = client_of(claims)
        if self.clients and client not in self.clients:
            return Rejection(
                "The token is for a client that isn't accepted here.",
                f"Its client is {quote(client or None)}, and client_ids contains {quote(list(self.clients))}.",
            )
        if not self.audiences:
            text = "The token has an audience, but this server expects none."
            return None if given is None else Rejection(text, f"Its audience is {quote(given)}.")
        values: list[Any] = given if is_array(given) else [given]
        found = [each for each in values if isinstance(each, str) and each in self.audiences]
        if not found:
            return Rejection(
                "The token is for another audience.",
                f"Its audience is {quote(given)}, and this server expects {quote(next(iter(self.audiences)))}.",
            )
        # An ID token has a client's id as its audience, which may also be that of an API.
        if self.id_tokens or any("://" in each for each in found) or not _ID_ONLY & claims.keys():
            return None
        return _NO_ACCESS_TOKEN


TENANT = "{tenantid}"
_TENANT = re.compile(r"[A-Za-z0-9.-]{1,128}")
_ID_ONLY = {"nonce", "at_hash", "c_hash"}
"""Claims that only ID tokens have (OpenID Connect Core §2, §3.3.2.11)."""


_NO_ACCESS_TOKEN = Rejection("This isn't an access token.")
_TOO_EARLY = "The token isn't valid yet."


def judge(claims: Claims, rules: TokenRules, now: float) -> Identity | Rejection:
    """Return the identity in a token's claims, or which rule they break. The caller verifies the signature.

    The rules are about issuer, subject, audience, and times (RFC 7519, 8707, 9068).
    """
    flaw = _flaw(claims, rules, now)
    if flaw is not None:
        # Only time can make the token valid.
        return replace(flaw, is_genuine=True, seconds=0.0 if flaw.reason == _TOO_EARLY else rules.believed)
    expires = cast("float", claims["exp"]) + LEEWAY
    principal = Principal(
        cast("str", claims["sub"]),
        rules.issuer_of(claims),
        client_of(claims),
        scopes=scopes_of(claims, rules.implied, rules.scope_claims),
        claims=dict(claims),
        expires_at=expires,
    )
    return Identity(principal, min(expires - now, rules.believed))


def _flaw(claims: Claims, rules: TokenRules, now: float) -> Rejection | None:
    """Return the first rule that claims break, or None."""
    issuer = rules.issuer_of(claims)
    if not issuer:
        return Rejection(
            "The token is from a tenant that isn't accepted here.", f"Its tid is {quote(claims.get('tid'))}."
        )
    if claims.get("iss") != issuer:
        return Rejection(
            "The token is from another issuer.",
            f"Its issuer is {quote(claims.get('iss'))}, and this server expects {quote(issuer)}.",
        )
    if (flaw := rules.audience_flaw(claims)) is not None:
        return flaw
    if not _is_text(claims.get("sub")):
        return Rejection("The token has no subject (sub).")
    if not (rules.id_tokens or _is_access(claims)):
        return _NO_ACCESS_TOKEN
    if claims.get("cnf") is not None:
        # Bound to a key (RFC 7800). Proof of possession isn't checked here, so a thief could use the token.
        return Rejection("The token is bound to a key (cnf), and proofs aren't checked here.")
    return _time_flaw(claims, now)


def _time_flaw(claims: Claims, now: float) -> Rejection | None:
    expires = claims.get("exp")
    if not is_time(expires):
        return Rejection("The token has no expiration time (exp).")
    for name in ("nbf", "iat"):
        if not is_past(claims.get(name), now):
            return Rejection(_TOO_EARLY, f"Its {name} is {_ago(claims.get(name), now)}.")
    if expires + LEEWAY <= now:
        return Rejection("The token has expired.", f"Its exp is {_ago(expires, now)}.")
    return None


def _ago(value: object, now: float) -> str:
    """Return a claim's distance from the present time."""
    if not is_time(value):
        return "not a time"
    seconds = round(value - now)
    return f"in {pluralize(seconds, 'second')}" if seconds > 0 else f"{pluralize(-seconds, 'second')} ago"


def client_of(claims: Claims) -> str:
    """Return the client of a token: ``client_id`` (RFC 9068), or the corresponding claim of OpenID Connect, Entra, or
    Okta."""
    found = next((claims[name] for name in ("client_id", "azp", "appid", "cid") if name in claims), "")
    return found if _is_text(found) else ""


def scopes_of(claims: Claims, implied: Mapping[str, Collection[str]], names: Collection[str] = ()) -> frozenset[str]:
    """Return the scopes of a token and the scopes they imply.

    Args:
        claims: Claims of the token.
        implied: Scope -> the scopes that it includes.
        names: Claims with scopes, by name or by a path such as ``realm_access.roles``. By default ``scope`` (RFC 8693),
            or its common variant ``scp``.
    """
    found = set[str]()
    for name in names or ("scope" if "scope" in claims else "scp",):
        given: Any = claims.get(name)
        if given is None and "." in name:
            given = claims
            for part in name.split("."):
                given = members(given).get(part)
        values: list[Any] = given.split() if isinstance(given, str) else given if is_array(given) else []
        found |= {each for each in values if isinstance(each, str)}
    waiting = list(found)
    while waiting:
        more = set(implied.get(waiting.pop(), ())) - found
        found |= more
        waiting += more
    # An issuer's scope `*` has no special meaning here.
    return frozenset(found - {EVERYTHING})


def _is_access(claims: Claims) -> bool:
    """Return whether a token looks like an access token. Other tokens of Amazon Cognito and Keycloak may differ only in
    one claim, and events, such as logout tokens, only in `events` (RFC 8417).
    """
    return (
        claims.get("token_use", "access") == "access"
        and claims.get("typ") not in ("ID", "Refresh", "Offline", "Logout")
        and "events" not in claims
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def is_time(value: Any) -> TypeGuard[int | float]:
    """Return whether a claim is a plausible number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def is_past(value: Any, now: float) -> bool:
    """Return whether a time has come, or is missing."""
    return value is None or (is_time(value) and value <= now + LEEWAY)


ASYMMETRIC = ("ES256", "ES384", "ES512", "Ed25519", "EdDSA", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
"""Asymmetric signature algorithms. The first two letters determine the key type."""
_KEY_TYPES = {"ES": "EC", "Ed": "OKP", "PS": "RSA", "RS": "RSA", "HS": "oct"}
_PUBLIC = ("kty", "crv", "x", "y", "n", "e")
_MAX_KEYS = 256
"""Maximum keys of a set. Parsing that many takes up to 25 ms, each time an issuer's keys change."""
_MAX_OWN_KEYS = 64
"""Maximum keys of a client's set, which is parsed for each assertion."""
_MIN_RSA_BITS = 2048
_MAX_EXPONENT_BITS = 32
"""Maximum public exponent of an RSA key. An exponent as long as the modulus makes verification 40 times slower."""
_MIN_SECRET = 32


class InvalidToken(Exception):
    """The token is malformed, or its signature is invalid.

    Args:
        text: Message for the caller, without text from the token.
        details: See `Rejection.details`.
        is_signed: See `Rejection.is_signed`.
    """

    def __init__(self, text: str, details: str = "", *, is_signed: bool = False) -> None:
        super().__init__(text)
        self.details = details
        self.is_signed = is_signed

    def rejection(self) -> Rejection:
        """Return the rejection of a credential that should be such a token."""
        # An issuer can publish another key, but other text never becomes a token.
        return Rejection(
            str(self), self.details, is_signed=self.is_signed, seconds=0.0 if self.is_signed else _BELIEVED
        )


class Header(Struct):
    """The unverified header of a token."""

    alg: str
    kid: str | None = None
    typ: str = ""
    crit: object = UNSET
    b64: object = UNSET


class PublicKey(Struct, frozen=True):
    """A key that verifies signatures."""

    key: Any
    type: str
    kid: str | None = None
    alg: str | None = None
    issuer: str | None = None
    """Issuer whose tokens it signs, if a set is for several; may contain `TENANT`."""

    def fits(self, algorithm: str) -> bool:
        """Return whether the key is for this algorithm."""
        return _KEY_TYPES.get(algorithm[:2]) == self.type and self.alg in (None, algorithm)


class _Registry(jws.JWSRegistry):
    max_header_length = 4096


def open_token(token: str) -> tuple[Header, jws.CompactSignature]:
    """Return the unverified header and content of a token.

    Raises:
        InvalidToken: It isn't a signed token, or has critical header parameters, which aren't supported.
    """
    try:
        found = jws.extract_compact(token.encode(), registry=_Registry())
        header = msgspec.convert(found.headers(), Header)
    except (JoseError, TypeError, *MALFORMED) as exc:
        raise InvalidToken("This isn't a signed token.") from exc
    if (header.crit, header.b64) != (UNSET, UNSET):
        raise InvalidToken("The header has critical parameters.")
    header.typ = header.typ.lower().removeprefix("application/")
    return header, found


def read_payload(token: str) -> Json:
    """Return the unverified claims of a token. Use them only to select the key that verifies it, or for display.

    Raises:
        InvalidToken: It isn't a signed token, or has no claims.
    """
    try:
        return decode_object(open_token(token)[1].payload)
    except MALFORMED as exc:
        raise InvalidToken("The token has no claims.") from exc


async def read_claims(
    token: str,
    find: Callable[[str | None, str], Awaitable[list[PublicKey]]],
    algorithms: Collection[str],
    types: Sequence[str],
) -> Json:
    """Return the claims of a token that one of an issuer's keys has signed.

    Args:
        find: Returns the keys that may have made a signature.
        algorithms: Accepted algorithms.
        types: Accepted types, in lower case, the usual one first.

    Raises:
        InvalidToken: It isn't such a token.
    """
    header, found = open_token(token)
    is_signed = header.alg in ASYMMETRIC
    if header.alg not in algorithms:
        details = f"Its algorithm is {quote(header.alg)}, and the accepted ones are {', '.join(sorted(algorithms))}."
        raise InvalidToken("The token's signature algorithm isn't accepted here.", details, is_signed=is_signed)
    if header.typ not in types:
        details = f"Its typ is {quote(header.typ)}."
        raise InvalidToken(f"It must be a signed JWT of the type {types[0]}.", details, is_signed=is_signed)
    registry = _Registry(algorithms=[header.alg], strict_check_header=False)
    keys = await find(header.kid, header.alg)
    for each in keys:
        with suppress(JoseError, TypeError, *MALFORMED):
            if jws.validate_compact(found, each.key, registry=registry):
                return decode_object(found.payload)
    details = f"Its key id is {quote(header.kid)}, its algorithm is {header.alg}"
    details += f", and it claims to be from {quote(_issuer_of(found.payload))}."
    text = "The signature is invalid." if keys else "The signature is by an unknown key."
    raise InvalidToken(text, details, is_signed=is_signed)


def _issuer_of(payload: bytes) -> object:
    """Return the unverified issuer in a token's payload."""
    try:
        return decode_object(payload).get("iss")
    except MALFORMED:
        return None


def read_keys(raw: Mapping[str, Any]) -> list[PublicKey]:
    """Return the keys of a set (RFC 7517) that can verify signatures, without unsupported and weak keys.

    Raises:
        ValueError: It isn't a key set, or has too many keys.
    """
    given = raw.get("keys")
    if not is_array(given):
        raise ValueError("This isn't a key set.")
    _check_number(given, _MAX_KEYS)
    found = [_read_key(each) for each in given]
    return [each for each in found if each is not None]


def public_set(raw: Mapping[str, Any]) -> Json:
    """Return a key set with only the public string members of each key.

    Raises:
        ValueError: It isn't a key set, or has too many keys.
    """
    given = raw.get("keys")
    if not is_array(given) or not all(is_object(each) for each in given):
        raise ValueError("This isn't a key set.")
    _check_number(given, _MAX_OWN_KEYS)
    names = (*_PUBLIC, "kid", "alg", "use")
    return {"keys": [{name: each[name] for name in names if isinstance(each.get(name), str)} for each in given]}


def _check_number(given: Sequence[Any], most: int) -> None:
    """Reject a set with too many keys. If only some were read, tokens with other keys would fail for no visible
    reason."""
    if len(given) > most:
        raise ValueError(f"The set has {len(given)} keys, but at most {most} are supported. Remove old ones.")


def _read_key(raw: Any) -> PublicKey | None:
    if not is_object(raw):
        return None
    kind = raw.get("kty")
    if kind not in ("EC", "OKP", "RSA") or raw.get("use", "sig") != "sig":
        return None
    if kind == "OKP" and raw.get("crv") not in ("Ed25519", "Ed448"):
        return None
    try:
        # Drop private members, and members that restrict the library's use of the key.
        kept = {name: value for name, value in raw.items() if name in _PUBLIC}
        key = JWKRegistry.import_key(cast("Any", kept))
        if kind == "RSA":  # strong enough, and fast to verify
            public: Any = cast("Any", key).public_key
            if public.key_size < _MIN_RSA_BITS or public.public_numbers().e.bit_length() > _MAX_EXPONENT_BITS:
                return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    named = (raw.get(name) for name in ("kid", "alg", "issuer"))
    return PublicKey(key, kind, *(each if isinstance(each, str) else None for each in named))


def from_pem(text: str) -> Json:
    """Return a PEM public key as a member of a key set, without private parts.

    Raises:
        ValueError: It isn't a public key.
    """
    if "PRIVATE" in text:
        raise ValueError("This is a private key. The server needs the public key: openssl pkey -in KEY -pubout")
    for kind in (ECKey, RSAKey, OKPKey):
        with suppress(JoseError, ValueError, TypeError):
            return dict(kind.import_key(text).as_dict(private=False))
    raise ValueError(
        "The public key must be an EC, RSA, or Ed25519 key in PEM, starting with -----BEGIN PUBLIC KEY-----."
    )


def shared_secret(secret: str) -> PublicKey:
    """Return a key for HMAC signatures such as HS256.

    Raises:
        ValueError: The secret is too short.
    """
    if len(secret.encode()) < _MIN_SECRET:
        raise ValueError(f"A shared secret for tokens must have at least {_MIN_SECRET} bytes.")
    return PublicKey(OctKey.import_key(secret), "oct")


def new_private_key(kid: str) -> Json:
    """Return a new private key for ES256."""
    return dict(ECKey.generate_key("P-256", {"kid": kid, "alg": "ES256", "use": "sig"}).as_dict(private=True))


def sign(claims: Claims, key: Any, kid: str) -> str:
    """Return an access token (RFC 9068) signed with ES256."""
    header = {"alg": "ES256", "typ": "at+jwt", "kid": kid}
    return jws.serialize_compact(header, msgspec.json.encode(claims), key, algorithms=["ES256"])


logger = logging.getLogger("millstream")

Get = Callable[[str], Awaitable[FetchedDocument]]
"""Fetches a URL."""

_MAX_AGE = 600.0
_MAX_STALE_AGE = 86_400.0
_MAX_TRIED = 8
"""Maximum keys tried per token. Each costs a verification, and clients supply their own sets."""
_MIN_INTERVAL = 30.0
"""Minimum seconds between two fetches."""
RETRY_SECONDS = 5.0
"""Minimum seconds between an attempt that failed and the next one."""

_USELESS_KEYS = (
    "The key set %s has no key that can verify signatures, so its issuer's tokens will be rejected. Let the issuer "
    "sign with an asymmetric algorithm, such as RS256 or ES256."
)


class FixedKeys(Struct):
    """Keys that never change."""

    keys: list[PublicKey]
    epoch: int = 0

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that may have created a signature."""
        return select_keys(self.keys, kid, algorithm)

    async def prefetch(self) -> None:
        """Do nothing."""


class FetchedKeys(Struct, eq=False):
    """The public keys of an issuer at a URL, cached.

    The set is fetched on first use, after ten minutes, and when a token has an unknown key id, because issuers rotate
    keys; but at most every 30 seconds, or every 5 after a failure. Concurrent callers share one fetch. While the issuer
    is unavailable, cached keys stay valid for a day.
    """

    url: str | Callable[[], Awaitable[str]]
    """The URL of the keys, or a function that returns it."""
    get: Get
    retry: Callable[[], None] = lambda: None
    """Lets `url` immediately repeat a failed discovery."""
    clock: Clock = monotonic
    keys: list[PublicKey] = []
    """The keys that were fetched last."""
    _raw: Mapping[str, Any] = {}
    _last_fetch: float = -inf
    _last_attempt: float = -inf
    _flight: SingleFlight[None] = field(default_factory=SingleFlight[None])
    epoch: int = 0
    """Number of times the keys have changed."""
    outage: LogOnce = field(
        default_factory=lambda: LogOnce(
            None,  # until a server uses them
            "An issuer's tokens can't be verified, because its keys can't be fetched",
            "The issuer's keys can be fetched again.",
            remedy="Check the issuer's URL, and whether this machine can reach it.",
        )
    )

    async def prefetch(self) -> None:
        """Fetch the keys before the first token. If that fails, the first token triggers another fetch."""
        try:
            await self.find("", "")
        except Unavailable:
            self._last_attempt = self._last_fetch
            self.retry()

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that may have created a signature.

        Raises:
            Unavailable: The keys can't be fetched.
        """
        now = self.clock()
        found = select_keys(self.keys, kid, algorithm)
        is_old = now - self._last_fetch > _MAX_AGE
        if (not found or is_old) and (self._flight.runs("keys") or now - self._last_attempt >= _MIN_INTERVAL):
            self._last_attempt = now
            await self._flight.run("keys", self._load)
            found = select_keys(self.keys, kid, algorithm)
        if self.clock() - self._last_fetch > _MAX_STALE_AGE:
            raise Unavailable("The issuer's keys can't be fetched. Try again later.")
        return found

    async def _load(self) -> None:
        url = ""
        try:
            url = self.url if isinstance(self.url, str) else await self.url()
            raw = decode_object((await self.get(url)).body)
            keys = read_keys(raw)
        except (Unavailable, OutboundError, *MALFORMED) as exc:
            self.outage.fail(exc.why if isinstance(exc, Unavailable) else f"{url}: {exc}")
            self._last_attempt = self.clock() - _MIN_INTERVAL + RETRY_SECONDS
            self.retry()
            return
        self.outage.end()
        self._last_fetch = self.clock()
        if raw != self._raw:
            self._raw, self.keys = raw, keys
            self.epoch += 1
            if not keys:
                logger.warning(_USELESS_KEYS, url)


def select_keys(keys: list[PublicKey], kid: str | None, algorithm: str) -> list[PublicKey]:
    """Return up to `_MAX_TRIED` keys that support an algorithm and have the id `kid`, or any id if it's None."""
    return [each for each in keys if (kid is None or each.kid == kid) and each.fits(algorithm)][:_MAX_TRIED]
