"""Single HTTP requests to the servers that give tokens. Redirects aren't followed: each answer is for one URL."""

import ssl
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlencode

import msgspec

from millstream.client._errors import AccessDenied, TargetError
from millstream.client._http.connection import Reply
from millstream.client._http.endpoint import lines
from millstream.client._http.pool import Pool
from millstream.client._http.url import Url, parse

T = TypeVar("T")

_MAX_BODY = 256 * 1024
_TIMEOUT = 10.0
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
        return await pool.send(data, repeatable=method == "GET")
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
        return msgspec.json.decode(reply.body, type=wanted) if reply.status == 200 else None
    except (msgspec.MsgspecError, RecursionError):
        return None


async def post_form(url: str, form: Mapping[str, str], headers: Mapping[str, str], tls: ssl.SSLContext | None) -> Reply:
    """Send a form, as token endpoints want it."""
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    return await fetch("POST", url, headers={**kind, **headers}, body=urlencode(form).encode(), tls=tls)
