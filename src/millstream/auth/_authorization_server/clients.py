"""The clients of the authorization server: how they're found, registered, and authenticated.

The operator configures a client, or the client describes itself: its id is the URL of a metadata document, or it
registers at `POST /register`. It authenticates at the token endpoint (RFC 6749 §2.3, RFC 7523), and may bring a grant
from an identity provider.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_plus

from millstream._http.client.pool import (
    AddressCheck,
    FetchedDocument,
    OutboundError,
    allow_any,
    check_url,
    fetch,
    is_public,
)
from millstream._http.hosts import is_loopback
from millstream._http.message import HttpRequest, Response, media_type, peer_network
from millstream._limits import Limiter, Rate
from millstream._oauth import ASSERTION, JWT_BEARER
from millstream._protocol.json_schema import is_array, is_object
from millstream._protocol.jsonrpc import MALFORMED, Json, decode_object
from millstream._recent import Recent
from millstream._server.calls.vault import Vault, digest, new_secret
from millstream._stores.rates import share_for
from millstream._tasks import SingleFlight
from millstream.auth._authorization_server.config import TOKEN, IssuerConfig
from millstream.auth._authorization_server.records import (
    CODE,
    METHODS,
    REFRESH,
    Grant,
    OAuthClient,
    OAuthError,
    Parameters,
    check_redirect,
    fits,
    form_of,
    reply,
)
from millstream.auth._jose import (
    ASYMMETRIC,
    LEEWAY,
    Claims,
    FetchedKeys,
    InvalidToken,
    PublicKey,
    is_past,
    is_time,
    public_set,
    read_claims,
    read_keys,
    read_payload,
    select_keys,
)
from millstream.auth._method import CachedRejection, KeyedSemaphore, Rejection, RejectionCache, Unavailable
from millstream.auth._tokens import issuer_keys
from millstream.auth.providers import RegistrationDenied

MAX_BYTES = 5 * 1024
_DEFAULT_CACHE_SECONDS = 300.0
_MAX_CACHE_SECONDS = 86_400.0
_MAX_CACHED = 512
_MAX_CONCURRENT_FETCHES = 16
TOO_MANY = "Too many client documents are being looked up. Try again in a minute."
_NO_ACCESS = (
    "If the server has no access to the internet, its operator can set metadata_documents=False in auth.issuer(…). "
    "Then, clients register instead."
)
MAX_REDIRECTS = 16
MAX_NAME = 80
_AGE = re.compile(r"(?:^|[,\s])max-age=(\d{1,9})")


def judge_of(*, here: bool) -> Callable[[str], bool]:
    """Return a function that checks addresses: it allows public ones, and loopback if `here` is set."""
    return (
        (lambda address: is_public(address) or ip_address(address.partition("%")[0]).is_loopback) if here else is_public
    )


def check_id(url: str) -> None:
    """Check that a URL is a valid client id.

    Raises:
        Unavailable: The URL isn't valid.
    """
    try:
        parts = check_url(url)
    except OutboundError as exc:
        raise Unavailable(f"The client id isn't a valid client URL. {exc}") from None
    dots = any(each.lower() in (".", "..", "%2e", "%2e%2e", ".%2e", "%2e.") for each in parts.path.split("/"))
    if parts.path in ("", "/") or "#" in url or dots:
        raise Unavailable("The client id must be a URL with a path, without a fragment or dot segments.")


def client_of(
    id: str, said: Mapping[str, Any], source: str, *, methods: tuple[str, ...], default: str, secret_hash: str = ""
) -> OAuthClient:
    """Return a client from its metadata (RFC 7591 §2).

    Raises:
        OAuthError: The metadata or a redirect URI is invalid.
    """
    method = said.get("token_endpoint_auth_method", default)
    if method not in methods:
        raise OAuthError("invalid_client_metadata", f"token_endpoint_auth_method must be one of {', '.join(methods)}.")
    uris = said.get("redirect_uris")
    if not is_array(uris) or not 0 < len(uris) <= MAX_REDIRECTS:
        raise OAuthError("invalid_redirect_uri", f"redirect_uris must be a list of 1 to {MAX_REDIRECTS} URIs.")
    for each in uris:
        try:
            check_redirect(each if isinstance(each, str) else "", web=said.get("application_type") == "web")
        except ValueError as exc:
            raise OAuthError("invalid_redirect_uri", str(exc)) from None
    grants = said.get("grant_types", [CODE])
    if not is_array(grants) or CODE not in grants:
        raise OAuthError("invalid_client_metadata", "grant_types must include authorization_code.")
    try:
        keys, keys_url = _keys_of(said) if method == "private_key_jwt" else (None, "")
    except ValueError as exc:
        raise OAuthError("invalid_client_metadata", str(exc)) from None
    name = said.get("client_name")
    if said.get("dpop_bound_access_tokens", False) is not False:
        text = "Sender-constrained tokens (dpop_bound_access_tokens) aren't supported."
        raise OAuthError("invalid_client_metadata", text)
    return OAuthClient(
        id,
        name=_plain(name) if isinstance(name, str) else "",
        redirect_uris=tuple(uris),
        method=method,
        secret_hash=secret_hash if method.startswith("client_secret") else "",
        grant_types=tuple(each for each in (CODE, REFRESH, JWT_BEARER) if each in grants),
        keys=keys,
        keys_url=keys_url,
        source=source,
    )


def _keys_of(said: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    keys, url = said.get("jwks"), said.get("jwks_uri")
    if is_object(keys) and url is None:
        return public_set(keys), ""
    if isinstance(url, str) and keys is None:
        try:
            check_url(url)
        except OutboundError as exc:
            raise ValueError(f"jwks_uri is invalid. {exc}") from None
        return None, url
    raise ValueError("private_key_jwt requires either jwks or jwks_uri.")


def _plain(name: str) -> str:
    """Return a name without control characters and characters that reverse text."""
    return " ".join("".join(each if each.isprintable() else " " for each in name).split())[:MAX_NAME]


def _age_of(answer: FetchedDocument) -> float:
    control = answer.headers.get(b"cache-control", b"").decode("latin-1").lower()
    if "no-store" in control or "no-cache" in control:
        return 0.0
    age = _AGE.search(control)
    return min(float(age[1]), _MAX_CACHE_SECONDS) if age else _DEFAULT_CACHE_SECONDS


UNUSED = 86_400.0
"""Seconds before an unused registration expires."""
USED = 90 * 86_400.0
"""Seconds after its last use before a registration with a consent expires."""
_MAX_ID = 2048
_MAX_BODY = 16 * 1024
_LOOKUPS = Rate(60, 60)
"""Maximum fetches of documents and their key sets caused by one address."""


_TYPES = ("client-authentication+jwt", "jwt", "")
"""Accepted types. Signatures for another purpose, such as a DPoP proof, don't authenticate (RFC 8725 §3.11)."""
_MAX_ASSERTION_SECONDS = 600.0
"""Maximum lifetime of an assertion or grant in seconds."""
_NO_PERIOD = "has no validity period."
_MAX_CONCURRENT_CHECKS = 8
"""Maximum concurrent verifications per address, so that parallel guesses get no more tries than sequential ones."""
_PROOFS = Rate(600, 60)
"""Maximum assertions per address from clients that the operator hasn't configured, because each use is stored."""
_MAX_KEYS = 256
_BASIC = b'www-authenticate: Basic realm="token", charset="UTF-8"\r\n'
"""Challenge for a client that used this header to authenticate (RFC 6749 §5.2)."""
_GRANT_TYPE = "oauth-id-jag+jwt"
_MAX_TEXT = 255


class Clients:
    """All clients.

    A client id can be the URL of a document that describes the client (draft-ietf-oauth-client-id-metadata-document).
    Documents are fetched over https from public addresses, without redirects and with a small size limit. A development
    server can also fetch from its own machine. Each worker caches documents according to their Cache-Control. Failures
    aren't cached.

    A client with a secret or keys must use them to authenticate. Its id alone isn't enough. A request with several
    methods is rejected.
    """

    def __init__(self, config: IssuerConfig, vault: Vault, *, provided: bool = False) -> None:
        """Create the lookup. `provided` means that the provider finds all clients."""
        self._config = config
        self._vault = vault
        self._provided = provided
        self._judges: dict[str, AddressCheck] = {
            # Only the operator may configure a URL on a private network.
            "given": allow_any,
            "document": judge_of(here=not config.secure),
            "registered": is_public,
        }
        """Source of clients -> whether an IP address may be contacted for their documents and keys."""
        self.identity_keys: dict[str, FetchedKeys] = {issuer: issuer_keys(issuer) for issuer in config.identities}
        """Issuer of each identity provider -> its keys."""
        self._lookups = vault.limiter("client-lookup", _LOOKUPS)
        self._registrations = vault.limiter("register", Rate.of(vault.settings.limit_registrations))
        self._failures = vault.limiter("client-sign-in", Rate.of(vault.settings.limit_failed_sign_ins))
        self._wrong_secrets = RejectionCache()
        self._proofs = Limiter("client-proof", _PROOFS)
        self._checks = KeyedSemaphore(_MAX_CONCURRENT_CHECKS)
        self._documents: Recent[str, tuple[float, OAuthClient]] = Recent(_MAX_CACHED)
        """URL -> expiry and client. The oldest are dropped first."""
        self._flight = SingleFlight[OAuthClient]()
        self._keys = {source: Recent[str, FetchedKeys](_MAX_KEYS) for source in self._judges}
        """Source of clients -> URL -> keys, so that other clients can't displace keys of configured ones. The oldest
        of each source are dropped first.
        """

    async def find(self, client_id: str, request: HttpRequest) -> OAuthClient | None:
        """Return a client, or None if the id is unknown.

        Args:
            client_id: The client's id.
            request: Request that causes the lookup, for the limit on fetches of metadata documents.

        Raises:
            Unavailable: The client's document can't be fetched, or fetching is off. The message gives the reason.
        """
        if not client_id or len(client_id) > _MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        found = await self._config.provider.find_client(client_id) or self._config.clients.get(client_id)
        if found is not None or self._provided:
            return found
        if "://" in client_id:
            return await self._find_described(client_id, request)
        for kind in ("oauth-client", "oauth-new"):
            found = await self._vault.get(f"{kind}:{client_id}", OAuthClient)
            if found is not None:
                return found
        return None

    async def _find_described(self, url: str, request: HttpRequest) -> OAuthClient:
        """Return the client that the document at a URL describes.

        Raises:
            Unavailable: The document is invalid, or can't be fetched.
        """
        if not self._config.metadata_documents:
            raise Unavailable("This server doesn't fetch metadata documents. Register the client instead.")
        kept = self._documents.get(url)
        if kept is not None and kept[0] > self._vault.clock():
            return kept[1]
        check_id(url)
        flight = self._flight
        if not flight.runs(url) and (len(flight) >= _MAX_CONCURRENT_FETCHES or not self._may_fetch(request)):
            raise Unavailable(TOO_MANY)
        return await flight.run(url, lambda: self._fetch(url))

    async def _fetch(self, url: str) -> OAuthClient:
        try:
            answer = await fetch(url, is_allowed=self._judges["document"], max_bytes=MAX_BYTES)
        except OutboundError as exc:
            raise Unavailable(f"The client's metadata document couldn't be fetched. {exc} {_NO_ACCESS}") from None
        kind = media_type(answer.headers)
        if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
            raise Unavailable("The client's metadata document isn't JSON.")
        try:
            said = decode_object(answer.body)
        except MALFORMED:
            raise Unavailable("The client's metadata document isn't JSON.") from None
        if said.get("client_id") != url:
            raise Unavailable("The client's metadata document describes another client.")
        if "client_secret" in said or "client_secret_expires_at" in said:
            raise Unavailable("The client's metadata document is public, but contains a secret. Remove it.")
        try:
            client = client_of(url, said, "document", methods=("none", "private_key_jwt"), default="none")
        except OAuthError as exc:
            raise Unavailable(f"The client's metadata document is invalid. {exc}") from None
        self._documents.keep(url, (self._vault.clock() + _age_of(answer), client))
        return client

    def _may_fetch(self, request: HttpRequest) -> bool:
        """Count a fetch for a request and return whether it's allowed. At a development server, only callers on this
        machine may cause one.
        """
        here = self._config.secure or is_loopback(request.peer)
        return here and self._lookups.report(peer_network(request.peer)) <= 0

    async def read_registration(self, request: HttpRequest) -> Json:
        """Count a registration and return the metadata of the client.

        Raises:
            OAuthError: There were too many registrations from this network, or the body isn't a JSON object or is too
                large.
        """
        key = peer_network(request.peer)
        wait = await self._registrations.charge(key)
        if wait > 0:
            text = "Too many registrations from your address. Try again later."
            raise _slow(text, self._registrations.header_lines(key, wait))
        if media_type(request.headers) != b"application/json":
            raise OAuthError("invalid_client_metadata", "Send the metadata as application/json.", 415)
        if len(request.body) > _MAX_BODY:
            raise OAuthError("invalid_client_metadata", "Client metadata can have up to 16 KiB.", 413)
        try:
            return decode_object(request.body)
        except MALFORMED:
            raise OAuthError("invalid_client_metadata", "The body isn't a JSON object.") from None

    async def register(self, request: HttpRequest) -> Response:
        """Handle `POST /register`: dynamic client registration (RFC 7591). Only this response has the secret.

        Registered clients are unverified. Unused registrations expire after a day, or earlier when the storage for
        their address is full. They're rate-limited per address.
        """
        said = await self.read_registration(request)
        secret = new_secret()
        try:
            client = client_of(
                f"{share_for(peer_network(request.peer))}.mc_{new_secret()[:22]}",
                said,
                "registered",
                methods=METHODS,
                default="client_secret_basic",
                secret_hash=digest(secret),
            )
            await self._config.provider.check_registration(client)
        except RegistrationDenied as exc:
            raise OAuthError("access_denied", str(exc), 403) from None
        # A flood of registrations displaces only unused ones.
        await self._vault.put(f"oauth-new:{client.id}", client, UNUSED, lossy=True)
        kind = said.get("application_type")
        members: Json = {
            "client_id": client.id,
            "client_id_issued_at": int(self._vault.clock()),
            "client_name": client.name,
            "redirect_uris": client.redirect_uris,
            "grant_types": client.grant_types,
            "response_types": ["code"],
            "token_endpoint_auth_method": client.method,
            "application_type": kind if kind in ("native", "web") else None,
            "jwks": client.keys,
            "jwks_uri": client.keys_url,
        }
        if client.secret_hash:
            members |= {"client_secret": secret, "client_secret_expires_at": 0}
        return reply({name: value for name, value in members.items() if value not in (None, "")}, 201)

    async def renew(self, client: OAuthClient) -> None:
        """Extend a registration that a user has approved, or that refreshes a token."""
        if client.source == "registered":
            await self._vault.put(f"oauth-client:{client.id}", client, USED)
            await self._vault.kv.delete(f"oauth-new:{client.id}")

    # Authentication

    async def read_token(self, request: HttpRequest) -> tuple[OAuthClient, str]:
        """Return the authenticated client of a request, and the token that it names."""
        form = form_of(request)
        client = await self.authenticate(request, form)
        token = form.get("token")
        if not token:
            raise OAuthError("invalid_request", "token is missing.")
        return client, token

    async def authenticate(self, request: HttpRequest, form: Parameters) -> OAuthClient:
        """Return the authenticated client of a request.

        Raises:
            OAuthError: The client is unknown or fails authentication.
            Unavailable: The client's keys can't be fetched, or too many requests from its address are waiting.
        """
        async with self._checks.hold(peer_network(request.peer)):
            header = request.headers.get(b"authorization")
            if header is not None and sum(name == b"authorization" for name, _ in request.raw_headers) > 1:
                raise OAuthError("invalid_request", "The Authorization header is repeated.")
            try:
                return await self._authenticate(request, header, form)
            except OAuthError as exc:
                if exc.status == 401:
                    exc.head = b"" if header is None else _BASIC
                    self._vault.report_failure(request.peer)
                raise

    async def _authenticate(self, request: HttpRequest, header: bytes | None, form: Parameters) -> OAuthClient:
        secret, assertion = form.get("client_secret"), form.get("client_assertion")
        if sum((header is not None, bool(secret), bool(assertion))) > 1:
            raise OAuthError("invalid_request", "The client uses more than one authentication method. Use only one.")
        client_id = form.get("client_id")
        if header is not None:
            client_id, secret = _basic(header, form)
        if assertion:
            return await self._by_assertion(request, form)
        if secret:
            return await self._by_secret(request, client_id, secret)
        client = await self._find_known(request, client_id)
        if client.method != "none":
            raise _invalid_client("This client has to authenticate.")
        return client

    async def _find_known(self, request: HttpRequest, client_id: str) -> OAuthClient:
        try:
            client = await self.find(client_id, request)
        except Unavailable as exc:
            raise _invalid_client(str(exc)) from None
        if client is None:
            raise _invalid_client("The client is unknown. Register it again.")
        return client

    async def _by_secret(self, request: HttpRequest, client_id: str, secret: str) -> OAuthClient:
        """Return a client with a secret. Only a wrong secret is a guess: ids aren't secret, and the server may have
        forgotten a client. The same secret again isn't a second guess.
        """
        client = await self._find_known(request, client_id)
        if not client.method.startswith("client_secret"):
            raise _invalid_client("This client doesn't have a secret.")
        network = peer_network(request.peer)
        if (wait := self._failures.wait(network)) > 0:
            raise _slow("Too many failed attempts from your address.", self._failures.header_lines(network, wait))
        if not fits(secret, client.secret_hash):
            key = RejectionCache.key(network, f"{client.id}\0{secret}")
            if key not in self._wrong_secrets:
                self._failures.report(network)
            self._wrong_secrets.keep(key, CachedRejection(network, Rejection(), 0.0))
            raise _invalid_client("The client secret is invalid.")
        return client

    async def _by_assertion(self, request: HttpRequest, form: Parameters) -> OAuthClient:
        if form.get("client_assertion_type") != ASSERTION:
            raise OAuthError("invalid_request", f"client_assertion_type must be {ASSERTION}.")
        assertion = form.get("client_assertion")
        try:
            subject = read_payload(assertion).get("sub")
            claimed = subject if isinstance(subject, str) else ""
            client = await self._find_known(request, form.get("client_id") or claimed)
            if client.method != "private_key_jwt" or client.id != claimed:
                raise _invalid_client("The assertion isn't from this client.")
            address = peer_network(request.peer)
            if client.source != "given" and (wait := self._proofs.take(address)) > 0:
                raise _slow("Too many assertions from your address.", self._proofs.header_lines(address, wait))
            claims = await read_claims(assertion, partial(self._find_keys, request, client), ASYMMETRIC, _TYPES)
        except InvalidToken as exc:
            raise _invalid_client(f"The assertion is invalid. {exc}") from None
        if claims.get("iss") != client.id or _audience_of(claims) not in (self._config.url, self._config.base + TOKEN):
            raise _invalid_client("The assertion's issuer or audience is wrong.")
        if flaw := _flaw(claims, self._vault.clock()):
            raise _invalid_client(f"The assertion {flaw}")
        if not await self.spend("oauth-jti", claims):
            raise _invalid_client("The assertion has already been used.")
        return client

    async def spend(self, kind: str, claims: Claims) -> bool:
        """Record the use of a checked assertion. Return False if it was already used (RFC 7523 §3)."""
        once = digest(f"{claims['iss']} {claims['jti']}")
        return await self._vault.exchange(
            f"{kind}:{once}", None, b"1", claims["exp"] - self._vault.clock() + 2 * LEEWAY
        )

    async def _find_keys(
        self, request: HttpRequest, client: OAuthClient, kid: str | None, algorithm: str
    ) -> list[PublicKey]:
        if client.keys is not None:
            return select_keys(read_keys(client.keys), kid, algorithm)
        known = self._keys[client.source]
        keys = known.get(client.keys_url)
        if keys is None:
            if client.source != "given" and not self._may_fetch(request):
                raise Unavailable(TOO_MANY)
            keys = FetchedKeys(client.keys_url, partial(fetch, is_allowed=self._judges[client.source]))
            known.keep(client.keys_url, keys)
        return await keys.find(kid, algorithm)

    # Grants from identity providers

    async def read_grant(self, assertion: str, client: OAuthClient) -> tuple[Grant, Claims]:
        """Verify an identity provider's grant. Return our own grant for it, and the claims.

        With such a grant, members of an organization use a client here without a login page. It's a JWT signed by a
        configured provider for this issuer and one client, valid once within a few minutes:
        draft-ietf-oauth-identity-assertion-authz-grant (ID-JAG), as profiled by MCP's extension:
        https://github.com/modelcontextprotocol/ext-auth, specification/stable/enterprise-managed-authorization.mdx.

        Args:
            assertion: The grant.
            client: The authenticated client.

        Raises:
            OAuthError: The grant isn't valid here.
            Unavailable: The provider's keys can't be fetched.
        """
        try:
            issuer = read_payload(assertion).get("iss")
            keys = self.identity_keys.get(issuer) if isinstance(issuer, str) else None
            if keys is None:
                raise _invalid_grant("This server doesn't accept grants from this identity provider.")
            claims = await read_claims(assertion, keys.find, ASYMMETRIC, (_GRANT_TYPE,))
        except InvalidToken as exc:
            raise _invalid_grant(f"The grant is invalid. {exc}") from None
        self._check_grant(claims, client)
        scope, resource = claims.get("scope", ""), claims.get("resource", [])
        name: Any = claims.get("name", claims.get("email"))
        resources = [resource] if isinstance(resource, str) else resource
        if (
            not isinstance(scope, str)
            or not is_array(resources)
            or not all(isinstance(each, str) for each in resources)
        ):
            raise _invalid_grant("The grant's scope must be a string, and its resource one or more URLs.")
        asked = Grant(
            client.id,
            f"{claims['iss']}#{claims['sub']}",  # unique across providers and local accounts
            name if _is_text(name) else "",
            claims["iss"],
            tuple(dict.fromkeys(scope.split())),
            tuple(str(each) for each in resources),
            since=self._config.identities[claims["iss"]].number,
        )
        return asked, claims

    def _check_grant(self, claims: Claims, client: OAuthClient) -> None:
        if _audience_of(claims) != self._config.url:
            raise _invalid_grant("The grant is for another authorization server.")
        if claims.get("client_id") != client.id:
            raise _invalid_grant("The grant is for another client.")
        flaw = _flaw(claims, self._vault.clock()) if is_time(claims.get("iat")) else _NO_PERIOD
        if flaw:
            raise _invalid_grant(f"The grant {flaw}")
        if not _is_text(claims.get("sub")):
            raise _invalid_grant("The grant has no subject.")
        if "tenant" in claims:
            # Subjects are unique only within a tenant, and anyone can create a tenant at such a provider.
            raise _invalid_grant(
                "The grant specifies a tenant. Use a provider that has a separate issuer for each organization."
            )
        if claims.get("cnf") is not None:
            raise _invalid_grant("The grant is bound to a key, and proof of possession isn't supported.")


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
    if not mark:
        raise _invalid_client("The Authorization header is malformed.")
    if form.get("client_id") not in ("", name):
        raise _invalid_client("The Authorization header and client_id in the form identify different clients.")
    return name, secret


def _flaw(claims: Claims, now: float) -> str:
    """Return what's wrong with the validity period or the id of a single-use assertion, or an empty string."""
    begins, until = claims.get("iat") or now, claims.get("exp")
    if not is_time(until):
        return _NO_PERIOD
    if not all(is_past(claims.get(name), now) for name in ("iat", "nbf")):
        return "isn't valid yet."
    if until <= now - LEEWAY:
        return "has expired."
    if until - begins > _MAX_ASSERTION_SECONDS + LEEWAY:
        return "has a lifetime that exceeds ten minutes."
    return "" if _is_text(claims.get("jti")) else "has no jti, so it could be replayed."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _invalid_grant(text: str) -> OAuthError:
    return OAuthError("invalid_grant", text)
