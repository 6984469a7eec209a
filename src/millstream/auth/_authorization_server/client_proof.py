"""Client authentication at the token endpoint (RFC 6749 §2.3, RFC 7523), and grants from identity providers."""

from base64 import b64decode
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

from msgspec import Struct

from millstream._http.client.pool import AddressCheck, allow_any, fetch, is_public
from millstream._http.message import HttpRequest, peer_network
from millstream._limits import Limiter, Rate
from millstream._protocol.json_schema import is_array
from millstream._recent import Recent
from millstream.auth._authorization_server.clients import TOO_MANY, Clients
from millstream.auth._authorization_server.config import TOKEN, IssuerConfig
from millstream.auth._authorization_server.records import OAuthClient, OAuthError, Parameters, digest, fits
from millstream.auth._authorization_server.tickets import Vault
from millstream.auth._jose import (
    ASYMMETRIC,
    LEEWAY,
    Claims,
    FetchedKeys,
    Header,
    InvalidToken,
    PublicKey,
    is_time,
    read_header,
    read_keys,
    read_payload,
    select_keys,
    verify_any,
)
from millstream.auth._method import KeyedSemaphore, Unavailable, prefetch_all
from millstream.auth._tokens import issuer_keys
from millstream.auth.providers import TrustedIdentityProvider

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_TYPES = frozenset(("", "jwt", "client-authentication+jwt"))
"""Accepted types. Signatures for another purpose, such as a DPoP proof, don't authenticate (RFC 8725 §3.11)."""
_MAX_ASSERTION_SECONDS = 600.0
"""Maximum lifetime of an assertion in seconds."""
_FAILURES = Rate(30, 60)
_MAX_CONCURRENT_CHECKS = 8
"""Maximum concurrent verifications per address, so that parallel guesses get no more tries than sequential ones."""
_PROOFS = Rate(600, 60)
"""Maximum assertions per address from clients that the operator hasn't configured, because each use is stored."""
_MAX_KEYS = 256
_BASIC = b'www-authenticate: Basic realm="token", charset="UTF-8"\r\n'
"""Challenge for a client that used this header to authenticate (RFC 6749 §5.2)."""


class ClientProof:
    """Authenticates clients.

    A client with a secret or keys must use them; its id alone isn't enough. A request with several methods is refused.
    """

    def __init__(self, config: IssuerConfig, clients: Clients, vault: Vault) -> None:
        # Configuration
        self._audiences = (config.url, config.base + TOKEN)
        self._clients = clients
        self._vault = vault
        self._judges: dict[str, AddressCheck] = {
            # Only the operator may configure a URL on a private network.
            "given": allow_any,
            "document": clients.judge,
            "registered": is_public,
        }
        # State
        self._failures = vault.limiter("client-sign-in", _FAILURES)
        self._checks = KeyedSemaphore(_MAX_CONCURRENT_CHECKS)
        self._proofs = Limiter("client-proof", _PROOFS)
        self._keys = {source: Recent[str, FetchedKeys](_MAX_KEYS) for source in self._judges}
        """Source of clients -> URL -> keys, so that other clients can't displace keys of configured ones. The oldest
        of each source are dropped first.
        """

    async def client(self, request: HttpRequest, form: Parameters) -> OAuthClient:
        """Return the authenticated client.

        Raises:
            OAuthError: The client is unknown or fails authentication.
            Unavailable: Its keys can't be fetched, or too many requests from its address wait.
        """
        key = peer_network(request.peer)
        async with self._checks.hold(key):
            wait = self._failures.wait(key)
            if wait > 0:
                raise _slow("Too many failed attempts from your address.", self._failures.header_lines(key, wait))
            header = request.headers.get(b"authorization")
            if header is not None and sum(name == b"authorization" for name, _ in request.raw_headers) > 1:
                raise OAuthError("invalid_request", "The Authorization header is repeated.")
            try:
                return await self._client(request, header, form)
            except OAuthError as exc:
                if exc.status == 401:
                    exc.head = b"" if header is None else _BASIC
                    self._failures.report(key)
                    self._vault.refused(request.peer)
                raise

    async def _client(self, request: HttpRequest, header: bytes | None, form: Parameters) -> OAuthClient:
        secret, assertion = form.get("client_secret"), form.get("client_assertion")
        if sum((header is not None, bool(secret), bool(assertion))) > 1:
            raise OAuthError("invalid_request", "The client uses more than one authentication method. Use only one.")
        if header is not None:
            return await self._by_secret(request, *_basic(header, form))
        if assertion:
            return await self._by_assertion(request, form)
        if secret:
            return await self._by_secret(request, form.get("client_id"), secret)
        client = await self._find(request, form.get("client_id"))
        if client.method != "none":
            raise _invalid_client("This client has to authenticate.")
        return client

    async def _find(self, request: HttpRequest, client_id: str) -> OAuthClient:
        try:
            client = await self._clients.find(client_id, request)
        except Unavailable as exc:
            raise _invalid_client(str(exc)) from None
        if client is None:
            raise _invalid_client("The client is unknown. Register it again.")
        return client

    async def _by_secret(self, request: HttpRequest, client_id: str, secret: str) -> OAuthClient:
        client = await self._find(request, client_id)
        if not client.method.startswith("client_secret") or not fits(secret, client.secret_hash):
            raise _invalid_client("The client's secret is wrong.")
        return client

    async def _by_assertion(self, request: HttpRequest, form: Parameters) -> OAuthClient:
        if form.get("client_assertion_type") != ASSERTION:
            raise OAuthError("invalid_request", f"client_assertion_type must be {ASSERTION}.")
        assertion = form.get("client_assertion")
        try:
            header = read_header(assertion)
            subject = read_payload(assertion).get("sub")
        except InvalidToken as exc:
            raise _invalid_client(f"The assertion is malformed. {exc}") from None
        if header.typ not in _TYPES:
            raise _invalid_client("The assertion is a JWT of another type.")
        claimed = subject if isinstance(subject, str) else ""
        client = await self._find(request, form.get("client_id") or claimed)
        if client.method != "private_key_jwt" or client.id != claimed or header.alg not in ASYMMETRIC:
            raise _invalid_client("The assertion isn't from this client.")
        address = peer_network(request.peer)
        if client.source != "given" and (wait := self._proofs.take(address)) > 0:
            raise _slow("Too many assertions from your address.", self._proofs.header_lines(address, wait))
        keys = await self._keys_of(request, client, header)
        claims = verify_any(assertion, keys, header.alg)
        if claims is None:
            raise _invalid_client("The assertion's signature is wrong.")
        await self._judge_assertion(claims, client)
        return client

    async def _judge_assertion(self, claims: dict[str, Any], client: OAuthClient) -> None:
        now, until, jti = self._vault.clock(), claims.get("exp"), claims.get("jti")
        if (
            claims.get("iss") != client.id
            or claims.get("sub") != client.id
            or _audience_of(claims) not in self._audiences
        ):
            raise _invalid_client("The assertion has another subject, issuer, or audience.")
        if not is_time(until) or not now - LEEWAY < until < now + _MAX_ASSERTION_SECONDS + LEEWAY:
            raise _invalid_client("The assertion has expired, or its lifetime exceeds ten minutes.")
        begins = (claims.get("nbf"), claims.get("iat"))
        if any(is_time(each) and each > now + LEEWAY for each in begins):
            raise _invalid_client("The assertion isn't valid yet.")
        if not isinstance(jti, str) or not jti:
            raise _invalid_client("The assertion has no jti, so it could be replayed.")
        # RFC 7523 §3: each jti counts once.
        if not await self._vault.exchange(f"oauth-jti:{digest(f'{client.id} {jti}')}", None, b"1", until - now + 130):
            raise _invalid_client("The assertion has already been used.")

    async def _keys_of(self, request: HttpRequest, client: OAuthClient, header: Header) -> list[PublicKey]:
        if client.keys is not None:
            return select_keys(read_keys(client.keys), header.kid, header.alg)
        known = self._keys[client.source]
        keys = known.get(client.keys_url)
        if keys is None:
            if client.source != "given" and not self._clients.may_fetch(request):
                raise Unavailable(TOO_MANY)
            keys = FetchedKeys(client.keys_url, partial(fetch, is_allowed=self._judges[client.source]))
            known.keep(client.keys_url, keys)
        return await keys.find(header.kid, header.alg)


def _audience_of(claims: Claims) -> Any:
    """Return the audience, given as a string or as a list of one."""
    audience = claims.get("aud")
    return audience[0] if is_array(audience) and len(audience) == 1 else audience


def _slow(text: str, head: bytes) -> OAuthError:
    return OAuthError("temporarily_unavailable", text, 429, head)


def _invalid_client(text: str) -> OAuthError:
    return OAuthError("invalid_client", text, 401)


def _basic(header: bytes, form: Parameters) -> tuple[str, str]:
    """Return the client's id and secret, decoded from Base64 and then form-decoded (RFC 6749 §2.3.1)."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() != b"basic":
        raise _invalid_client("The Authorization header must use the Basic scheme.")
    try:
        name, mark, secret = b64decode(value.strip(), validate=True).decode().partition(":")
    except ValueError:
        raise _invalid_client("The Authorization header is malformed.") from None
    name, secret = unquote_plus(name), unquote_plus(secret)
    if not mark or form.get("client_id") not in ("", name):
        raise _invalid_client("The Authorization header and client_id in the form name different clients.")
    return name, secret


_TYPE = "oauth-id-jag+jwt"
_MAX_GRANT_SECONDS = 600.0
"""Maximum lifetime of a grant in seconds."""
_MAX_TEXT = 255


class IdentityGrant(Struct, frozen=True):
    """The content of a verified grant."""

    provider: str
    subject: str
    """Subject on this server, unique across providers and local accounts."""
    name: str
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    """Resources that the grant names; may be empty."""
    once: str
    """Store key that records that the grant was used."""
    until: float


class Identities:
    """Verifies grants from identity providers.

    With a grant, members of an organization use a client here without a login page. It's a JWT signed by a configured
    provider for this issuer and one client, valid once within a few minutes:
    draft-ietf-oauth-identity-assertion-authz-grant (ID-JAG), as profiled by MCP's extension:
    https://github.com/modelcontextprotocol/ext-auth, specification/stable/enterprise-managed-authorization.mdx.
    """

    def __init__(self, own: str, providers: Mapping[str, TrustedIdentityProvider], vault: Vault) -> None:
        self._own = own
        self._vault = vault
        self._keys = {issuer: issuer_keys(issuer) for issuer in providers}

    async def prefetch(self) -> None:
        """See `Prefetchable.prefetch`."""
        await prefetch_all(self._keys.values())

    async def read(self, assertion: str, client: OAuthClient) -> IdentityGrant:
        """Verify a grant and return its content.

        Args:
            assertion: The grant.
            client: The authenticated client.

        Raises:
            OAuthError: The grant isn't valid here.
            Unavailable: The provider's keys can't be fetched.
        """
        try:
            header, issuer = read_header(assertion), read_payload(assertion).get("iss")
        except InvalidToken as exc:
            raise _invalid_grant(f"The grant is malformed. {exc}") from None
        if header.typ != _TYPE or header.alg not in ASYMMETRIC:
            raise _invalid_grant(f"The grant must be a signed JWT of the type {_TYPE}.")
        keys = self._keys.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise _invalid_grant("This server doesn't accept grants from this identity provider.")
        claims = verify_any(assertion, await keys.find(header.kid, header.alg), header.alg)
        if claims is None:
            raise _invalid_grant("The grant's signature is wrong.")
        self._check(claims, client)
        return _read_grant(claims)

    async def count(self, granted: IdentityGrant) -> None:
        """Mark a grant as used.

        Raises:
            OAuthError: The grant was already used.
        """
        seconds = granted.until - self._vault.clock() + 2 * LEEWAY
        if not await self._vault.exchange(granted.once, None, b"1", seconds):
            raise _invalid_grant("The grant has already been used.")

    def _check(self, claims: Claims, client: OAuthClient) -> None:
        if _audience_of(claims) != self._own:
            raise _invalid_grant("The grant is for another authorization server.")
        if claims.get("client_id") != client.id:
            raise _invalid_grant("The grant is for another client.")
        _check_time(claims, self._vault.clock())
        if not _is_text(claims.get("jti")):
            raise _invalid_grant("The grant has no jti, so it could be replayed.")
        if not _is_text(claims.get("sub")):
            raise _invalid_grant("The grant has no subject.")
        if "tenant" in claims:
            # Subjects are unique only within a tenant, and anyone can create a tenant at such a provider.
            raise _invalid_grant(
                "The grant names a tenant. Use a provider that has a separate issuer for each organization."
            )
        if claims.get("cnf") is not None:
            raise _invalid_grant("The grant is bound to a key, and proof of possession isn't supported.")


def _check_time(claims: Claims, now: float) -> None:
    begins, until = claims.get("iat"), claims.get("exp")
    if not (is_time(begins) and is_time(until)):
        raise _invalid_grant("The grant has no validity period.")
    if not all(is_time(each) and each <= now + LEEWAY for each in (begins, claims.get("nbf", begins))):
        raise _invalid_grant("The grant isn't valid yet.")
    if until <= now - LEEWAY:
        raise _invalid_grant("The grant has expired.")
    if until - begins > _MAX_GRANT_SECONDS:
        raise _invalid_grant("The grant's lifetime exceeds ten minutes.")


def _read_grant(claims: Claims) -> IdentityGrant:
    scope, resource, name = claims.get("scope", ""), claims.get("resource", []), claims.get("name", claims.get("email"))
    resources = [resource] if isinstance(resource, str) else resource
    if not isinstance(scope, str) or not is_array(resources) or not all(isinstance(each, str) for each in resources):
        raise _invalid_grant("The grant's scope must be a string, and its resource one or more URLs.")
    return IdentityGrant(
        claims["iss"],
        f"{claims['iss']}#{claims['sub']}",
        name if _is_text(name) else "",
        tuple(dict.fromkeys(scope.split())),
        tuple(str(each) for each in resources),
        "oauth-jag:" + digest(f"{claims['iss']} {claims['jti']}"),
        float(claims["exp"]),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _invalid_grant(text: str) -> OAuthError:
    return OAuthError("invalid_grant", text)
