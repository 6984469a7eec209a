"""Discovery of metadata about servers (RFC 9728) and authorization servers (RFC 8414, OIDC).

See https://modelcontextprotocol.io/specification/2026-07-28/basic/authorization. Servers of 2025-03-26 don't publish
their own metadata; their authorization server is at the root of the same origin. URLs that another server names are
checked before a request.
"""

import re
import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from socket import inet_aton
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct

from millstream._http.client.connection import HttpReply
from millstream._http.client.fetch import request
from millstream._http.client.pool import AddressRefused, Dial, is_public
from millstream._http.client.url import Url, parse
from millstream.client._errors import AccessDenied, ConnectFailed, ConnectionLost, InvalidResponse, TargetError

MAX_LENGTH = 16 * 1024
"""Maximum length. Longer headers are ignored."""
_GAP = re.compile(r"[\s,]*+")
_NAME = re.compile(r'[^\s,="]++')
_EQUALS = re.compile(r"\s*+=\s*+")
_QUOTED_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"?+')
_PLAIN = re.compile(r"[^\s,]*+")


class ParsedChallenges(Struct, frozen=True):
    """The challenges of one header."""

    schemes: frozenset[str]
    """Scheme names, in lower case."""
    parameters: Mapping[str, str]
    """Parameters of all schemes, with names in lower case. The last of repeated parameters wins."""


def read_challenges(header: str) -> ParsedChallenges:
    """Parse a `WWW-Authenticate` header (RFC 9110 §11.6.1), skipping malformed parts.

    It takes linear time, because a hostile server can write this header, and the client parses it on its event loop.
    Every pattern is possessive, so each character is examined at most twice.
    """
    schemes, parameters = set[str](), dict[str, str]()
    position, end = 0, len(header)
    while len(header) <= MAX_LENGTH and position < end:
        gap = _GAP.match(header, position)
        first = position == 0 or (gap is not None and "," in gap[0])
        position = gap.end() if gap is not None else position
        name = _NAME.match(header, position)
        if name is None:  # a stray quotation mark or equals sign
            stray = _QUOTED_STRING.match(header, position)
            position = position + 1 if stray is None else stray.end()
            continue
        equals = _EQUALS.match(header, name.end())
        if equals is None:
            if first:  # otherwise it's the token68 of the previous scheme
                schemes.add(name[0].lower())
            position = name.end()
            continue
        value = _QUOTED_STRING.match(header, equals.end()) or _PLAIN.match(header, equals.end())
        assert value is not None  # noqa: S101  the plain pattern matches anything
        parameters[name[0].lower()] = value[1] if value.re is _QUOTED_STRING else value[0]
        position = value.end()
    return ParsedChallenges(frozenset(schemes), parameters)


T = TypeVar("T")


class Outbound(Struct, frozen=True):
    """Connection settings for requests to authorization servers."""

    tls: ssl.SSLContext | None = None
    """Certificates to trust; those of the system by default."""
    dial: Dial[Any] | None = None
    """Connects to hosts; pass `guarded` if untrusted parties choose the addresses. By default, honors proxy variables.
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
    """Send one request and return the reply. Redirects aren't followed, because each response is for one URL.

    Raises:
        AccessDenied: Credentials may not be sent to the URL.
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
            f"{where.origin} isn't on the public Internet, so requests to it are refused.", remedy=_PRIVATE_REMEDY
        ) from exc
    except UnicodeError as exc:  # an invalid host name
        raise ConnectFailed(f"{where.origin} can't be reached.") from exc
    except (InvalidResponse, ConnectionLost) as exc:  # caused by this server, not by the MCP server
        raise ConnectFailed(f"{where.origin} didn't send a usable response: {exc}") from exc


def parse_secure(url: str) -> Url:
    """Parse a URL that tokens and secrets may be sent to: https, or a loopback address.

    Raises:
        AccessDenied: The URL is neither.
    """
    where = parse(url)
    if not where.secure and where.host not in _LOOPBACK:
        raise AccessDenied(f"{url} doesn't use https, so credentials can't be sent there.")
    return where


def refuse_local(place: str, named_by: Url) -> str:
    """Return a URL that another server names, after checking that it's no closer to this machine than that server.
    Services of this machine and of its network may trust requests that come from there, such as a browser's.

    Raises:
        AccessDenied: The URL is on this machine and the server isn't, or it's in a private network and the server is in
            neither.
    """
    try:
        distance = _distance(parse(place).host)
    except TargetError:
        return place  # nothing can be sent there
    if distance < _distance(named_by.host):
        where = ("on this machine", "in a private network")[distance]
        raise AccessDenied(f"{named_by} refers to {place} {where}, which a remote server may not do.")
    return place


def _distance(host: str) -> int:
    """Return 0 for any name of this machine, 1 for one in a private network, and 2 for one on the Internet."""
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
    """Fetch a JSON document. Return None if it doesn't exist."""
    try:
        reply = await fetch("GET", url, outbound=outbound)
        return read_object(reply.body, wanted) if reply.status == 200 else None
    except (ValueError, RecursionError):
        return None


def read_object(body: bytes, wanted: type[T]) -> T:
    """Decode a JSON object leniently: null counts as a missing member, "60" as a number.

    Raises:
        ValueError: The body isn't such an object.
        RecursionError: The object is nested too deeply.
    """
    found = msgspec.json.decode(body, type=dict[str, Any])
    return msgspec.convert({name: each for name, each in found.items() if each is not None}, wanted, strict=False)


async def post_form(
    url: str, form: Mapping[str, str], headers: Mapping[str, str], outbound: Outbound = DIRECT
) -> HttpReply:
    """Send a form, as token endpoints require."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return await fetch("POST", url, headers={**kind, **headers}, body=urlencode(form).encode(), outbound=outbound)


class ProtectedResource(Struct):
    """Protected resource metadata of a server."""

    resource: str = ""
    authorization_servers: list[str] = []
    scopes_supported: list[str] = []
    dpop_signing_alg_values_supported: list[str] = []
    dpop_bound_access_tokens_required: bool = False


class IssuerMetadata(Struct):
    """Metadata of an authorization server."""

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
    places = [refuse_local(named, url)] if named else [f"{url.origin}{known}{path}", f"{url.origin}{known}"]
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
        theirs = urlsplit(resource)
    except ValueError:
        return False
    ours = urlsplit(str(url))
    same = (theirs.scheme.lower(), theirs.netloc.lower()) == (ours.scheme, ours.netloc.lower())
    above = theirs.path.rstrip("/") + "/"
    return not resource or (same and (ours.path.rstrip("/") + "/").startswith(above))


async def find_issuer(issuer: str, outbound: Outbound) -> IssuerMetadata | None:
    """Return the metadata of an authorization server.

    Raises:
        AccessDenied: The metadata names another issuer.
    """
    parse_secure(issuer)
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    places = [f"{origin}/.well-known/{name}{path}" for name in ("oauth-authorization-server", "openid-configuration")]
    if path:
        places.append(f"{origin}{path}/.well-known/openid-configuration")
    for place in places:
        found = await get_json(place, IssuerMetadata, outbound)
        if found is not None and found.token_endpoint:
            if found.issuer != issuer:
                raise AccessDenied(f"The metadata of {issuer} names another issuer, {found.issuer}.")
            return _check_endpoints(found, parse_secure(place))
    return None


async def find_at_origin(url: Url, outbound: Outbound) -> IssuerMetadata:
    """Return the authorization server of a 2025-03-26 server, from its origin or from that revision's default
    endpoints.
    """
    origin = url.origin
    found = await get_json(f"{origin}/.well-known/oauth-authorization-server", IssuerMetadata, outbound)
    if found is not None and found.token_endpoint:
        if found.issuer.rstrip("/") != origin:
            raise AccessDenied(f"The metadata of {origin} names another issuer, {found.issuer}.")
        return _check_endpoints(found, url)
    return IssuerMetadata(
        issuer=origin,
        authorization_endpoint=f"{origin}/authorize",
        token_endpoint=f"{origin}/token",
        registration_endpoint=f"{origin}/register",
        code_challenge_methods_supported=["S256"],
    )


def _check_endpoints(issuer: IssuerMetadata, named_by: Url) -> IssuerMetadata:
    places = (
        issuer.authorization_endpoint,
        issuer.token_endpoint,
        issuer.registration_endpoint,
        issuer.revocation_endpoint,
    )
    for place in places:
        refuse_local(place, named_by)
    return issuer
