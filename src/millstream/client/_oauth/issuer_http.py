"""Requests to authorization servers, and checks of their URLs."""

import ssl
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from socket import inet_aton
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from millstream._http.client.connection import HttpReply
from millstream._http.client.fetch import request
from millstream._http.client.pool import AddressRefused, Dial, is_public
from millstream._http.client.url import Url, parse
from millstream.client._errors import AccessDenied, BadAnswer, ConnectFailed, ConnectionLost, TargetError

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
        AccessDenied: credentials may not be sent to the URL.
        ClientError: there was no response.
    """
    where = parse_secure(url)
    try:
        return await request(
            method, where, {"Accept": "application/json", **(headers or {})}, body, max_body=_MAX_BODY,
            seconds=_TOTAL_TIMEOUT, connect_seconds=_TIMEOUT, dial=outbound.dial, context=outbound.tls,
        )  # fmt: skip
    except TimeoutError as exc:
        raise ConnectFailed(f"{where.origin} didn't answer within {_TOTAL_TIMEOUT:g} seconds.") from exc
    except AddressRefused as exc:
        raise ConnectFailed(
            f"{where.origin} isn't on the public Internet, so requests to it are refused.", remedy=_PRIVATE_REMEDY
        ) from exc
    except UnicodeError as exc:  # an invalid host name
        raise ConnectFailed(f"{where.origin} can't be reached.") from exc
    except (BadAnswer, ConnectionLost) as exc:  # caused by this server, not by the MCP server
        raise ConnectFailed(f"{where.origin} sent no usable response: {exc}") from exc


def parse_secure(url: str) -> Url:
    """Parse a URL that tokens and secrets may be sent to: https, or a loopback address.

    Raises:
        AccessDenied: the URL is neither.
    """
    where = parse(url)
    if not where.secure and where.host not in _LOOPBACK:
        raise AccessDenied(f"{url} doesn't use https, so credentials can't be sent there.", 401)
    return where


def refuse_local(place: str, named_by: Url) -> str:
    """Return a URL that another server names, after checking that it's no closer to this machine than that server.
    Services of this machine and of its network may trust requests that come from there, such as a browser's.

    Raises:
        AccessDenied: the URL is on this machine and the server isn't, or it's in a private network and the server is in
            neither.
    """
    try:
        distance = _distance(parse(place).host)
    except TargetError:
        return place  # nothing can be sent there
    if distance < _distance(named_by.host):
        where = ("on this machine", "in a private network")[distance]
        raise AccessDenied(f"{named_by} refers to {place} {where}, which a remote server may not do.", 401)
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
        ValueError: the body isn't such an object.
        RecursionError: the object is nested too deeply.
    """
    found = msgspec.json.decode(body, type=dict[str, Any])
    return msgspec.convert({name: each for name, each in found.items() if each is not None}, wanted, strict=False)


async def post_form(
    url: str, form: Mapping[str, str], headers: Mapping[str, str], outbound: Outbound = DIRECT
) -> HttpReply:
    """Send a form, as token endpoints require."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return await fetch("POST", url, headers={**kind, **headers}, body=urlencode(form).encode(), outbound=outbound)
