"""Requests to authorization servers: discovery, registration, tokens, and revocation.

Metadata follows RFC 9728 for servers, and RFC 8414 or OIDC for authorization servers, see
https://modelcontextprotocol.io/specification/2026-07-28/basic/authorization. Servers of 2025-03-26 don't publish their
own metadata. Their authorization server is at the root of the same origin. URLs that another server specifies are
checked before a request. Clients register by RFC 7591, request tokens by RFC 6749, and revoke them by RFC 7009. Tokens
can be bound to a key of the client (see `Proofs`).
"""

import re
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from socket import inet_aton
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
from msgspec import Struct

from millstream._confidential import Confidential
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import AddressRefused, Dial, is_public, request
from millstream._http.client.url import Url, parse_url
from millstream._oauth import basic_credentials, metadata_urls, non_empty
from millstream._protocol.jsonrpc import Json
from millstream._protocol.redaction import find_secrets, redact_bytes, secret_parts
from millstream._protocol.uri import split_url
from millstream.client._endpoint import brief
from millstream.client._errors import AccessDenied, ConnectFailed, ConnectionLost, InvalidResponse, TargetError
from millstream.client._oauth import PRIVATE_KEY_JWT, Registration, Tokens

if TYPE_CHECKING:
    from millstream.client._oauth.signing import Key


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_LENGTH = 16 * 1024
"""Maximum length. Longer headers are ignored."""
_PART = re.compile(
    r"""([\s,]*+)(?:
        ([^\s,="]++)                                # a scheme, its token68, or the name of a parameter
        (?:\s*+=\s*+(?:
            "((?:[^"\\]|\\.)*+)"?+ | ([^\s,]*+)     # the value of a parameter
        ))?+
        | "(?:[^"\\]|\\.)*+"?+ | = | \Z             # a stray quotation mark or equals sign
    )""",
    re.VERBOSE,
)


class ParsedChallenges(Struct, frozen=True):
    """The challenges of one header: ``read_challenges(header).parameters.get("scope", "")``."""

    schemes: frozenset[str]
    """Scheme names, in lower case."""
    parameters: Mapping[str, str]
    """Parameters of all schemes, with names in lower case. If a parameter is repeated, the last one is used."""


def read_challenges(header: str) -> ParsedChallenges:
    """Parse a `WWW-Authenticate` header (RFC 9110 §11.6.1): ``read_challenges(header).schemes``.

    Malformed parts are skipped. It takes linear time, because a hostile server can write this header, and the client
    parses it on its event loop. Every pattern is possessive, so each character is examined at most twice.

    Args:
        header: Value of the header.
    """
    schemes, parameters = set[str](), dict[str, str]()
    for part in _PART.finditer(header if len(header) <= MAX_LENGTH else ""):
        gap, name, quoted, plain = part.groups()
        value = plain if quoted is None else quoted
        if name is None:
            continue
        if value is not None:
            parameters[name.lower()] = value
        elif "," in gap or part.start() == 0:  # otherwise it's the token68 of the previous scheme
            schemes.add(name.lower())
    return ParsedChallenges(frozenset(schemes), parameters)


T = TypeVar("T")


class Outbound(Struct, frozen=True):
    """Connection settings for requests to authorization servers: ``Outbound(dial=guard_dial(is_public))``."""

    tls: ssl.SSLContext | None = None
    """Certificates to trust, by default the system's."""
    dial: Dial[Any] | None = None
    """Connects to hosts; pass `guard_dial` if untrusted parties choose the addresses. By default, honors proxy
    variables.
    """


DIRECT = Outbound()

_MAX_BODY = 256 * 1024
_TIMEOUT = 10.0
_TOTAL_TIMEOUT = 30.0
"""Seconds for a complete response."""
_PRIVATE_REMEDY = "If that server may be in a private network, allow it for this upstream: private_addresses = true."
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def fetch(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    outbound: Outbound = DIRECT,
) -> HttpReply:
    """Send one request and return the reply: ``await fetch("GET", "https://login.example.com/keys")``.

    Redirects aren't followed, because each response is for one URL.

    Args:
        method: HTTP method.
        url: URL of the request.
        headers: Headers of the request.
        body: Body of the request.
        outbound: Connection settings.

    Raises:
        AccessDenied: Credentials can't be sent to the URL.
        ClientError: There was no response.
    """
    where = parse_secure(url)
    try:
        return await request(
            method,
            where,
            {"Accept": "application/json", **(headers or {})},
            body,
            max_body=_MAX_BODY,
            seconds=_TOTAL_TIMEOUT,
            connect_seconds=_TIMEOUT,
            dial=outbound.dial,
            context=outbound.tls,
        )
    except TimeoutError as exc:
        raise ConnectFailed(f"{where.origin} didn't respond within {_TOTAL_TIMEOUT:g} seconds.") from exc
    except AddressRefused as exc:
        raise ConnectFailed(
            f"{where.origin} isn't on the public Internet, so requests to it aren't allowed.", remedy=_PRIVATE_REMEDY
        ) from exc
    except (InvalidResponse, ConnectionLost) as exc:  # the authorization server caused this, not the MCP server
        raise ConnectFailed(f"{where.origin} didn't send a usable response: {exc}") from exc


def parse_secure(url: str) -> Url:
    """Parse a URL for tokens and secrets: ``parse_secure("https://login.example.com/token")``.

    Args:
        url: A URL with https or a loopback address.

    Raises:
        AccessDenied: The URL is neither.
    """
    where = parse_url(url)
    if not where.secure and where.host not in _LOOPBACK:
        raise AccessDenied(f"{url} doesn't use https, so credentials can't be sent there.")
    return where


def refuse_local(place: str, named_by: Url) -> str:
    """Return a URL that another server specifies, after checking that it isn't on a more private network than that
    server. Services on this machine and its network may trust local requests, such as a browser's.

    Raises:
        AccessDenied: The URL is on this machine and the server isn't, or it's in a private network and the server is in
            neither.
    """
    try:
        distance = _distance(parse_url(place).host)
    except TargetError:
        return place  # nothing can be sent to such a host
    if distance < _distance(named_by.host):
        where = ("on this machine", "in a private network")[distance]
        raise AccessDenied(f"{named_by} refers to {place} {where}, which a remote server may not do.")
    return place


def _distance(host: str) -> int:
    """Return 0 for `localhost` and this machine's own addresses, 1 for private addresses, names without a period, and
    names below `.local` and `.home.arpa`, and 2 for all others.
    """
    host = host.removesuffix(".")
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = IPv4Address(inet_aton(host))  # browsers read 127.1, 0x7f000001, and 2130706433
        except (OSError, ValueError):
            if host == "localhost" or host.endswith(".localhost"):
                return 0
            return 1 if "." not in host or host.endswith((".local", ".home.arpa")) else 2
    address = getattr(address, "ipv4_mapped", None) or address
    return 0 if address.is_loopback or address.is_unspecified else 2 if is_public(str(address)) else 1


async def get_json(url: str, wanted: type[T], outbound: Outbound = DIRECT) -> T | None:
    """Fetch a JSON document, after at most one redirect within its origin. Return None if it doesn't exist.

    Raises:
        AccessDenied: It exists, but an important member is invalid. Another document must not replace it.
    """
    try:
        reply = await fetch("GET", url, outbound=outbound)
        if reply.status in _REDIRECTS and b"location" in reply.headers:
            start = parse_secure(url)
            target = start.join(reply.header(b"location"))
            if target.origin == start.origin:
                reply = await fetch("GET", str(target), outbound=outbound)
        return read_object(reply.body, wanted) if reply.status == 200 else None
    except UnusableMember as exc:
        raise AccessDenied(f"The metadata at {url} can't be used: {exc}") from None
    except (ValueError, RecursionError, TargetError):
        return None


class UnusableMember(ValueError):
    """A required or security-relevant member has a value of the wrong type."""


_NEEDED = frozenset(
    (
        "access_token", "authorization_endpoint", "authorization_servers", "client_id", "client_secret", "error",
        "issuer", "registration_endpoint", "resource", "token_endpoint", "token_type",
    )
)  # fmt: skip
"""Members that determine where credentials are sent, or that are credentials."""


def read_object(body: bytes | Json, wanted: type[T]) -> T:
    """Convert a JSON object, or its bytes, to a Struct. Null and an optional member of another type count as missing,
    and "60" as a number.

    Raises:
        UnusableMember: A member of `_NEEDED` has a value of the wrong type.
        ValueError: The body isn't an object.
        RecursionError: The object is nested too deeply.
    """
    given = msgspec.json.decode(body, type=Json) if isinstance(body, bytes) else body
    found = {name: each for name, each in given.items() if each is not None}
    try:
        return msgspec.convert(found, wanted, strict=False)
    except msgspec.ValidationError:
        for member in msgspec.structs.fields(cast("type[Struct]", wanted)):
            try:
                if member.name in found:
                    msgspec.convert(found[member.name], member.type, strict=False)
            except msgspec.ValidationError:
                if member.name in _NEEDED:
                    raise UnusableMember(f"{member.name} has a value of the wrong type.") from None
                del found[member.name]
        return msgspec.convert(found, wanted, strict=False)


class ProtectedResource(Struct):
    """Protected resource metadata of a server."""

    resource: str = ""
    authorization_servers: list[str] = []
    scopes_supported: list[str] = []
    dpop_signing_alg_values_supported: list[str] = []
    dpop_bound_access_tokens_required: bool = False


class IssuerMetadata(Struct):
    """Metadata of an authorization server: ``(await find_issuer(url, Outbound())).token_endpoint``."""

    issuer: str = ""
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    registration_endpoint: str = ""
    revocation_endpoint: str = ""
    scopes_supported: list[str] = []
    code_challenge_methods_supported: list[str] = []
    token_endpoint_auth_methods_supported: list[str] = []
    token_endpoint_auth_signing_alg_values_supported: list[str] = []
    client_id_metadata_document_supported: bool = False
    authorization_response_iss_parameter_supported: bool = False
    dpop_signing_alg_values_supported: list[str] = []


async def find_resource(url: Url, named: str, outbound: Outbound) -> ProtectedResource | None:
    """Return the metadata of a server, from the URL in its challenge or from the well-known URLs.

    Raises:
        AccessDenied: The metadata describes another server.
    """
    path = url.target.partition("?")[0].rstrip("/")
    known = "/.well-known/oauth-protected-resource"
    places = [f"{url.origin}{known}{path}", f"{url.origin}{known}"]
    if named:
        with suppress(TargetError):  # without a URL in the challenge, the metadata is at the usual places
            places = [refuse_local(str(url.join(named)), url)]
    for place in dict.fromkeys(places):
        found = await get_json(place, ProtectedResource, outbound)
        if found is not None and found.authorization_servers:
            if not _covers(found.resource, url):
                raise AccessDenied(f"The metadata of {url} describes another server, {found.resource}.")
            return found
    return None


def _covers(resource: str, url: Url) -> bool:
    """Return whether metadata covers this server: the same origin, and the same path or a parent of it."""
    try:
        theirs = split_url(resource)
    except ValueError:
        return False
    ours = urlsplit(str(url))
    same = (theirs.scheme.lower(), theirs.netloc.lower()) == (ours.scheme, ours.netloc.lower())
    above = theirs.path.rstrip("/") + "/"
    return not resource or (same and (ours.path.rstrip("/") + "/").startswith(above))


async def find_issuer(issuer: str, outbound: Outbound) -> IssuerMetadata | None:
    """Return the metadata of an authorization server: ``await find_issuer("https://login.example.com", Outbound())``.

    Args:
        issuer: The issuer's identifier.
        outbound: Connection settings.

    Raises:
        AccessDenied: The metadata names another issuer.
    """
    parse_secure(issuer)
    for place in metadata_urls(issuer):
        found = await get_json(place, IssuerMetadata, outbound)
        if found is not None and found.token_endpoint:
            if found.issuer != issuer:
                raise AccessDenied(f"The metadata of {issuer} is for another issuer, {found.issuer}.")
            return _check_endpoints(found, parse_secure(place))
    return None


async def has_no_metadata(issuer: str, outbound: Outbound) -> bool:
    """Return whether an issuer responds that it has no metadata. Its endpoints are then at the default paths, as
    revision 2025-03-26 specifies for an origin without a path.
    """
    if urlsplit(issuer).path.rstrip("/"):
        return False
    return all([(await fetch("GET", each, outbound=outbound)).status == 404 for each in metadata_urls(issuer)])


async def find_at_origin(url: Url, outbound: Outbound) -> IssuerMetadata:
    """Return the authorization server of a 2025-03-26 server, from its origin or from that revision's default
    endpoints.
    """
    origin = url.origin
    found = await get_json(f"{origin}/.well-known/oauth-authorization-server", IssuerMetadata, outbound)
    if found is not None and found.token_endpoint:
        if found.issuer.rstrip("/") != origin:
            raise AccessDenied(f"The metadata of {origin} is for another issuer, {found.issuer}.")
        return _check_endpoints(found, url)
    return default_metadata(origin)


def default_metadata(origin: str) -> IssuerMetadata:
    """Return the endpoints of an authorization server without metadata (MCP 2025-03-26, basic/authorization)."""
    return IssuerMetadata(
        issuer=origin,
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=f"{origin}/token",
        registration_endpoint=f"{origin}/register",
        code_challenge_methods_supported=["S256"],
    )


def _check_endpoints(issuer: IssuerMetadata, named_by: Url) -> IssuerMetadata:
    for place in (
        issuer.authorization_endpoint,
        issuer.token_endpoint,
        issuer.registration_endpoint,
        issuer.revocation_endpoint,
    ):
        refuse_local(place, named_by)
    return issuer


SCHEME = "DPoP"
_MAX_NONCE = 1024


class Proofs:
    """The keys of one client, and the nonces that servers require: ``proofs.authorize(tokens, "POST", url)``.

    Sender-constrained tokens (DPoP, RFC 9449) need a proof with every request. A server announces DPoP in its challenge
    or its metadata. The authorization server binds the tokens to our key, so a stolen token is useless without the key.
    Servers may require a nonce in the proofs.
    """

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}
        """Keys by PEM."""
        self._nonces: dict[str, str] = {}
        """Nonces by origin."""

    def new(self) -> str:
        """Create a key and return its PEM."""
        from millstream.client._oauth.signing import new_proof_key  # noqa: PLC0415  needed only for proofs

        return new_proof_key()

    def headers(self, pem: str, method: str, url: str, token: str = "") -> Mapping[str, str]:
        """Return the proof header for a request. It's empty if there's no key, or if the key is invalid.

        Args:
            pem: Private key in PEM.
            method: HTTP method.
            url: URL of the request.
            token: The access token that the request sends.
        """
        if not pem:
            return {}
        from millstream.client._oauth.signing import load_proof_key, proof  # noqa: PLC0415  see above

        try:
            key = self._keys[pem] = self._keys.get(pem) or load_proof_key(pem)
        except ValueError:
            return {}
        parts = urlsplit(url)
        nonce = self._nonces.get(f"{parts.scheme}://{parts.netloc}", "")
        return {SCHEME: proof(key, method, url, token=token, nonce=nonce)}

    def authorize(self, tokens: Tokens, method: str, url: str) -> Mapping[str, str]:
        """Return the headers for a token, with a proof if it's bound to a key.

        Args:
            tokens: The token, and its key.
            method: HTTP method.
            url: URL of the request.
        """
        proof = self.headers(tokens.proof_key, method, url, tokens.access_token)
        return {"Authorization": f"{SCHEME if proof else 'Bearer'} {tokens.access_token}", **proof}

    def learn(self, url: Url | str, nonce: str) -> bool:
        """Store the nonce that a server requires from now on. Return whether the nonce is valid.

        Args:
            url: URL of the server.
            nonce: Value of the ``DPoP-Nonce`` header (RFC 9449 §8).
        """
        parts = urlsplit(str(url))
        if not 0 < len(nonce) <= _MAX_NONCE or not nonce.isprintable():
            return False
        self._nonces[f"{parts.scheme}://{parts.netloc}"] = nonce
        return True


def challenged_for_proofs(challenge: str) -> bool:
    """Return whether a challenge offers DPoP."""
    return SCHEME.lower() in read_challenges(challenge).schemes


def wants_nonce(challenge: str) -> bool:
    """Return whether a request was rejected only because its proof had no nonce or an old one (RFC 9449 §9).

    ``proofs.learn(url, nonce) and wants_nonce(challenge)``

    Args:
        challenge: The `WWW-Authenticate` header.
    """
    found = read_challenges(challenge)
    return SCHEME.lower() in found.schemes and found.parameters.get("error") == "use_dpop_nonce"


_MAX_LIFETIME = 100 * 365 * 86_400.0
_REMEDY = "Pass OAuth a client_id that the issuer knows."


class TokenResponse(Confidential, Struct):
    """The response of a token endpoint: ``response.check(issuer.issuer)`` raises its error."""

    access_token: str = ""
    refresh_token: str = ""
    scope: str = ""
    expires_in: float = 0
    token_type: str = ""
    issued_token_type: str = ""
    error: str = ""
    error_description: str = ""

    @property
    def expires_at(self) -> float:
        """Expiry in Unix time, or 0 if the issuer doesn't specify a usable one."""
        return time.time() + self.expires_in if 0 < self.expires_in < _MAX_LIFETIME else 0.0

    def check(self, issuer: str, wanted: str = "token") -> None:
        """Check that there's a token of a type that we support (RFC 6749 §7.1), and that it fits in a header.

        Args:
            issuer: The issuer, for the error.
            wanted: What was requested, for the error.

        Raises:
            AccessDenied: There's no such token.
        """
        token = self.access_token
        if self.error or not token:
            why = brief(self.error_description or self.error or "no reason given")
            raise AccessDenied(f"{issuer} issued no {wanted}: {why}.")
        if self.token_type.lower() not in ("", "bearer", "dpop") or not (token.isascii() and token.isprintable()):
            kind = brief(self.token_type) or "Bearer"
            raise AccessDenied(f"{issuer} issued a token of type {kind}, which this client can't send.")


_IN_FORM = "client_secret_post"


def method_of(issuer: IssuerMetadata, who: Registration) -> str:
    """Return the client authentication method for the token endpoint."""
    if who.token_endpoint_auth_method:
        return who.token_endpoint_auth_method
    offered = issuer.token_endpoint_auth_methods_supported
    usable = ["client_secret_basic", _IN_FORM] if who.client_secret else ["none"]
    if not who.client_id:  # about to register
        usable = ["none", "client_secret_basic", _IN_FORM]
    return next((method for method in usable if method in offered), usable[0])


async def register(
    issuer: IssuerMetadata, name: str, redirect: str, outbound: Outbound, scope: str = ""
) -> Registration:
    """Register as a client of an issuer, for the scopes that will be requested (RFC 7591 §2).

    Raises:
        AccessDenied: The issuer rejected the request.
    """
    # Some servers leave it out of their metadata, but have it where revision 2025-03-26 expects it.
    endpoint = issuer.registration_endpoint or urljoin(issuer.token_endpoint, "/register")
    about = {
        "client_name": name,
        "redirect_uris": [redirect],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "application_type": "web" if redirect.startswith("https:") else "native",
        "token_endpoint_auth_method": method_of(issuer, Registration()),
        **non_empty(scope=scope),
    }
    kind = {"Content-Type": "application/json"}
    reply = await fetch("POST", endpoint, headers=kind, body=msgspec.json.encode(about), outbound=outbound)
    if reply.status == 400 and about.pop("scope", ""):  # some issuers reject the member, or scopes that they don't know
        reply = await fetch("POST", endpoint, headers=kind, body=msgspec.json.encode(about), outbound=outbound)
    try:
        found, failure = read_object(reply.body, Registration), read_object(reply.body, TokenResponse)
    except (ValueError, RecursionError):
        found, failure = Registration(), TokenResponse()
    if reply.status not in (200, 201) or not found.client_id:
        if reply.status in (404, 405) and issuer == default_metadata(issuer.issuer):
            raise AccessDenied(
                f"There's no authorization server at {issuer.issuer}. The server may require an API key instead."
            )
        if not issuer.registration_endpoint:
            raise AccessDenied(f"{issuer.issuer} doesn't support client registration.", remedy=_REMEDY)
        why = f"status {reply.status}"
        if said := failure.error_description or failure.error:
            why += f", {brief(said)}"
        raise AccessDenied(f"{issuer.issuer} refused to register this client ({why}).", remedy=_REMEDY)
    # The response doesn't contain our signing key.
    return Registration(found.client_id, found.client_secret, found.token_endpoint_auth_method, scope=scope)


async def ask_token(
    issuer: IssuerMetadata,
    who: Registration,
    form: Mapping[str, str],
    outbound: Outbound,
    proofs: Proofs | None = None,
    key: str = "",
) -> TokenResponse:
    """Send a request to the token endpoint: ``await ask_token(issuer, registration, {"grant_type": …}, outbound)``.

    Args:
        issuer: The authorization server.
        who: The client's registration at the issuer.
        form: Form fields, without the client's credentials.
        outbound: Connection settings.
        proofs: Keys and nonces of the client.
        key: Private key in PEM to bind the token to, or empty for a bearer token.

    Raises:
        ClientError: There was no response.
    """
    proofs = proofs or Proofs()
    where = issuer.token_endpoint
    has_retried = False
    while True:  # at most two retries: with the nonce, and with the secret in the form
        reply = await post_as(who, issuer, where, form, outbound, proofs.headers(key, "POST", where))
        try:
            response = read_object(reply.body, TokenResponse)
        except UnusableMember as exc:
            return TokenResponse(error=f"status {reply.status}, {str(exc).rstrip('.')}")
        except (ValueError, RecursionError):
            return TokenResponse(error=f"status {reply.status}, with an unreadable response")
        new = proofs.learn(where, reply.header(b"dpop-nonce"))
        if response.error == "invalid_client" and _reads_only_forms(issuer, who):
            who = msgspec.structs.replace(who, token_endpoint_auth_method=_IN_FORM)
        elif response.error == "use_dpop_nonce" and new and not has_retried:
            has_retried = True
        else:
            return response


def _reads_only_forms(issuer: IssuerMetadata, who: Registration) -> bool:
    """Return whether an issuer that refused Basic credentials may accept them in the form, where some look for them."""
    others = issuer.token_endpoint_auth_methods_supported
    return method_of(issuer, who) == "client_secret_basic" and _IN_FORM in others


async def revoke(issuer: IssuerMetadata, who: Registration, tokens: Tokens, outbound: Outbound) -> bool:
    """Revoke tokens and return whether all of them are revoked."""
    if not issuer.revocation_endpoint:
        return False
    revoked = True
    for kind, token in {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}.items():
        if token:
            form = {"token": token, "token_type_hint": kind}
            reply = await post_as(who, issuer, issuer.revocation_endpoint, form, outbound, {})
            revoked = reply.status == 200 and revoked
    return revoked


async def post_as(
    who: Registration,
    issuer: IssuerMetadata,
    url: str,
    form: Mapping[str, str],
    outbound: Outbound,
    proof: Mapping[str, str],
) -> HttpReply:
    """Send a form to an endpoint of an issuer, with the fields and headers that authenticate the client.

    Raises:
        AccessDenied: The issuer doesn't accept signatures by our key.
        ClientError: There was no response.
    """
    method, fields = method_of(issuer, who), dict(form)
    headers = {"Content-Type": "application/x-www-form-urlencoded", **proof}
    if method == "client_secret_basic":
        headers["Authorization"] = basic_credentials(who.client_id, who.client_secret)
    if who.client_id:  # in addition to Basic, because servers of the official SDK look there first
        fields["client_id"] = who.client_id
    if method == _IN_FORM:
        fields["client_secret"] = who.client_secret
    if method == PRIVATE_KEY_JWT and who.private_key:
        from millstream.client._oauth.signing import assertion  # noqa: PLC0415  needed only for signatures

        fields |= assertion(issuer.issuer, issuer.token_endpoint_auth_signing_alg_values_supported, who)
    reply = await fetch("POST", url, headers=headers, body=urlencode(fields).encode(), outbound=outbound)
    if reply.status >= 400 or b'"error"' in reply.body:
        sent = {fields[name] for name in _SECRET_FIELDS if name in fields}
        reply.body = redact_bytes(reply.body, sent.union(find_secrets(headers), secret_parts(who.client_secret)))
    return reply


_SECRET_FIELDS = (
    "actor_token", "assertion", "client_assertion", "client_secret", "code", "code_verifier", "device_code",
    "password", "refresh_token", "subject_token", "token",
)  # fmt: skip
"""Fields of forms that are credentials."""


def with_private_key(who: Registration, key: str, key_id: str = "") -> Registration:
    """Return an identity that authenticates with signatures (RFC 7523 §2.2): ``with_private_key(who, pem, "2027")``.

    Args:
        who: The client's identity at an issuer.
        key: Private key in PEM.
        key_id: Id of the key at the issuer.

    Raises:
        ValueError: The key can't sign.
    """
    from millstream.client._oauth.signing import load_key  # noqa: PLC0415  needed only for signatures

    load_key(key)  # checks it
    changes = {"token_endpoint_auth_method": PRIVATE_KEY_JWT, "private_key": key, "key_id": key_id}
    return msgspec.structs.replace(who, **changes)
