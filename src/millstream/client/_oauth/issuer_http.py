"""Requests to authorization servers, and the URLs that they may go to."""

import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from millstream._http.client.connection import Reply
from millstream._http.client.dial import AddressRefused, Dial
from millstream._http.client.fetch import request
from millstream._http.client.url import Url, parse
from millstream.client._errors import AccessDenied, BadAnswer, ConnectFailed, ConnectionLost, TargetError

T = TypeVar("T")


class Outbound(Struct, frozen=True):
    """How requests to authorization servers travel."""

    tls: ssl.SSLContext | None = None
    """Certificates to trust; those of the system by default."""
    dial: Dial[Any] | None = None
    """Connects, such as `guarded`, where others choose the addresses. Without it, proxies of the environment count."""


DIRECT: Final = Outbound()

_MAX_BODY = 256 * 1024
_TIMEOUT = 10.0
_PATIENCE = 30.0
"""Seconds for the whole of an answer."""
_GUARDED: Final = "If that server may be in a private network, allow it for this upstream: private_addresses = true."
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def fetch(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    outbound: Outbound = DIRECT,
) -> Reply:
    """Return the reply to one request. No redirect is followed: each answer is for one URL.

    Raises:
        AccessDenied: the URL isn't one that credentials may go to.
        ClientError: there's no reply.
    """
    where = parse_secure(url)
    try:
        return await request(
            method, where, {"Accept": "application/json", **(headers or {})}, body, max_body=_MAX_BODY,
            seconds=_PATIENCE, connect_seconds=_TIMEOUT, dial=outbound.dial, context=outbound.tls,
        )  # fmt: skip
    except TimeoutError as exc:
        raise ConnectFailed(f"{where.origin} did not answer within {_PATIENCE:g} seconds.") from exc
    except AddressRefused as exc:
        raise ConnectFailed(f"{where.origin} isn't asked: it's not on the public Internet.", remedy=_GUARDED) from exc
    except UnicodeError as exc:  # a name that can't be looked up
        raise ConnectFailed(f"{where.origin} can't be reached.") from exc
    except (BadAnswer, ConnectionLost) as exc:  # of this server, and not of the one that the client talks to
        raise ConnectFailed(f"{where.origin} gave no answer: {exc}") from exc


def parse_secure(url: str) -> Url:
    """A URL that tokens and secrets may go to: https, or this machine.

    Raises:
        AccessDenied: another one.
    """
    where = parse(url)
    if not where.secure and where.host not in _LOOPBACK:
        raise AccessDenied(f"{url} is not protected by https, and credentials must not go there.", 401)
    return where


def refuse_local(place: str, named_by: Url) -> str:
    """A URL that another server has named, if it may: only a server of this machine sends us to this machine. Others
    would reach what trusts whoever is here.

    Raises:
        AccessDenied: it may not.
    """
    try:
        here = _is_here(parse(place).host)
    except TargetError:
        return place  # nothing can be sent there
    if here and not _is_here(named_by.host):
        raise AccessDenied(f"{named_by} names {place}, which is on this machine, and is elsewhere itself.", 401)
    return place


def _is_here(host: str) -> bool:
    """Return whether a host is this machine by any of its names: 0.0.0.0 leads there, and so does 127.0.0.2."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


async def get_json(url: str, wanted: type[T], outbound: Outbound = DIRECT) -> T | None:
    """A document, or None where there's none."""
    try:
        reply = await fetch("GET", url, outbound=outbound)
        return read_object(reply.body, wanted) if reply.status == 200 else None
    except (ValueError, RecursionError):
        return None


def read_object(body: bytes, wanted: type[T]) -> T:
    """A JSON object, read as generously as servers write one: null is a member that isn't there, "60" is a number.

    Raises:
        ValueError: it isn't one.
        RecursionError: it's too deep.
    """
    found = msgspec.json.decode(body, type=dict[str, Any])
    return msgspec.convert({name: each for name, each in found.items() if each is not None}, wanted, strict=False)


async def post_form(
    url: str, form: Mapping[str, str], headers: Mapping[str, str], outbound: Outbound = DIRECT
) -> Reply:
    """Send a form, as token endpoints want it."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return await fetch("POST", url, headers={**kind, **headers}, body=urlencode(form).encode(), outbound=outbound)
