"""Single HTTP requests to the servers that give tokens. Redirects aren't followed: each answer is for one URL."""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from millstream.client._errors import AccessDenied, BadAnswer, ConnectFailed, ConnectionLost, TargetError
from millstream.client._http.connection import Reply
from millstream.client._http.endpoint import lines
from millstream.client._http.pool import Pool
from millstream.client._http.url import Url, parse

T = TypeVar("T")

_MAX_BODY = 256 * 1024
_TIMEOUT = 10.0
_PATIENCE = 30.0
"""Seconds for the whole of an answer."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


async def fetch(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """The reply to one request.

    Raises:
        AccessDenied: the URL isn't one that credentials may go to.
        ClientError: there's no reply.
    """
    where = checked(url)
    pool = Pool(where, max_connections=1, max_body=_MAX_BODY, connect_timeout=_TIMEOUT, tls=tls)
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    head = f"{method} {where.target} HTTP/1.1\r\nHost: {where.authority}\r\nAccept: application/json\r\n"
    data = f"{head}{lines(headers or {})}{length}\r\n".encode("latin-1") + body
    try:
        async with asyncio.timeout(_PATIENCE):
            return await pool.send(data, repeatable=method == "GET")
    except TimeoutError as exc:
        raise ConnectFailed(f"{where.origin} did not answer within {_PATIENCE:g} seconds.") from exc
    except (BadAnswer, ConnectionLost) as exc:  # of this server, and not of the one that the client talks to
        raise ConnectFailed(f"{where.origin} gave no answer: {exc}") from exc
    finally:
        await pool.close()


def checked(url: str) -> Url:
    """A URL that tokens and secrets may go to: https, or this machine.

    Raises:
        AccessDenied: another one.
    """
    where = parse(url)
    if not where.secure and where.host not in _LOOPBACK:
        raise AccessDenied(f"{url} is not protected by https, and credentials must not go there.", 401)
    return where


def nearby(place: str, named_by: Url) -> str:
    """A URL that another server has named, if it may: only a server of this machine sends us to this machine. Others
    would reach what trusts whoever is here.

    Raises:
        AccessDenied: it may not.
    """
    try:
        here = parse(place).host in _LOOPBACK
    except TargetError:
        return place  # nobody gets anything there
    if here and named_by.host not in _LOOPBACK:
        raise AccessDenied(f"{named_by} names {place}, which is on this machine, and is elsewhere itself.", 401)
    return place


async def get_json(url: str, wanted: type[T], tls: ssl.SSLContext | None) -> T | None:
    """A document, or None where there's none."""
    try:
        reply = await fetch("GET", url, tls=tls)
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


async def post_form(url: str, form: Mapping[str, str], headers: Mapping[str, str], tls: ssl.SSLContext | None) -> Reply:
    """Send a form, as token endpoints want it."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return await fetch("POST", url, headers={**kind, **headers}, body=urlencode(form).encode(), tls=tls)
