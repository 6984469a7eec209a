"""Requests to authorization servers, and checks of their URLs."""

import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from millstream._http.client.connection import HttpReply
from millstream._http.client.dial import AddressRefused, Dial
from millstream._http.client.fetch import request
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


DIRECT: Final = Outbound()

_MAX_BODY = 256 * 1024
_TIMEOUT = 10.0
_TOTAL_TIMEOUT = 30.0
"""Seconds for a complete response."""
_PRIVATE_REMEDY: Final = (
    "If that server may be in a private network, allow it for this upstream: private_addresses = true."
)
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
    """Return a URL that another server names, after checking that a remote server doesn't name a local one. Local
    services may trust local requests.

    Raises:
        AccessDenied: the URL is local, and the server isn't.
    """
    try:
        here = _is_here(parse(place).host)
    except TargetError:
        return place  # nothing can be sent there
    if here and not _is_here(named_by.host):
        raise AccessDenied(f"{named_by} refers to {place} on this machine, which a remote server may not do.", 401)
    return place


def _is_here(host: str) -> bool:
    """Return whether a host is any name of this machine, including 0.0.0.0 and 127.0.0.2."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


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
