"""Single requests for metadata, keys, and tokens, without redirects and with limits on size and time.

`request` returns any reply. `fetch` is for untrusted URLs: it accepts https, or http on this machine, checks addresses,
requires status 200, and ignores proxies and credentials of the environment.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from millstream._http.client import ClientError, ConnectionLost, InvalidResponse, TargetError, TooLarge
from millstream._http.client.connection import HttpReply, lines
from millstream._http.client.pool import (
    AddressCheck,
    AddressRefused,
    ConnectionPool,
    Dial,
    guard_dial,
    is_public,
    is_this_machine,
)
from millstream._http.client.url import Url, parse

TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
_MAX_URL = 2048


class OutboundError(ValueError):
    """A fetch failed. The text says why, without content from internal addresses."""


class FetchedDocument(Struct, frozen=True):
    """A response with status 200."""

    body: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case."""


def check_url(url: str) -> SplitResult:
    """Check that a URL may be fetched (https, or http on this machine), and return its parts.

    Raises:
        OutboundError: The URL may not be fetched.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise OutboundError("The URL is malformed.") from None
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or not host or port == 0:
        raise OutboundError("The URL is malformed.")
    if parts.username is not None or parts.password is not None:
        raise OutboundError("A URL with a user name can't be requested.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_this_machine(host)):
        raise OutboundError("The URL must use https, or http on this machine.")
    return parts


async def fetch(
    url: str,
    *,
    form: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    is_allowed: AddressCheck = is_public,
    max_bytes: int = MAX_BYTES,
    seconds: float = TIMEOUT,
) -> FetchedDocument:
    """GET a URL, or POST a form to it.

    Args:
        url: The URL.
        form: An encoded form to send.
        headers: Further headers, sent to this origin only.
        is_allowed: Returns whether an address is allowed. Use `allow_any` for a URL that the operator has configured.
        max_bytes: Maximum bytes of the body.
        seconds: Time limit in seconds.

    Raises:
        OutboundError: The request failed, or the status isn't 200.
    """
    host = check_url(url).hostname
    try:
        target = parse(url)
    except TargetError:
        raise OutboundError("The URL is malformed.") from None
    head = {"accept": "application/json", "user-agent": "millstream", **(headers or {})}
    if form is not None:
        head["content-type"] = "application/x-www-form-urlencoded"
    if any(not value.isprintable() for value in head.values()):
        raise OutboundError("A header contains a line break or a character that isn't allowed.")
    try:
        reply = await request(
            "GET" if form is None else "POST", target, head, form or b"", dial=guard_dial(is_allowed, "documents"),
            max_body=max_bytes, seconds=seconds,
        )  # fmt: skip
    except (ClientError, AddressRefused, OSError, UnicodeError) as exc:  # UnicodeError: an invalid host name
        raise OutboundError(_reason(exc, host or "", seconds)) from exc
    if reply.status != 200:
        raise OutboundError(f"{host} responded with {reply.status}.")
    if reply.stream is not None:
        raise OutboundError(f"{host} sent a stream instead of a complete response.")
    if reply.headers.get(b"content-encoding", b"identity") != b"identity":
        raise OutboundError(f"{host} sent a compressed response, which isn't supported.")
    return FetchedDocument(reply.body, reply.headers)


def _reason(exc: Exception, host: str, seconds: float) -> str:
    match exc:
        case AddressRefused():
            return str(exc)
        case TimeoutError():
            return f"{host} didn't respond within {seconds:g} seconds."
        case ConnectionLost():
            return f"{host} closed the connection in the middle of its answer."
        case TooLarge():
            return "The answer is too large."
        case InvalidResponse():
            return "The answer isn't valid HTTP."
        case _:
            return f"{host} can't be reached: {type(exc.__cause__ or exc).__name__}."


async def request(
    method: str,
    url: Url,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    max_body: int,
    seconds: float,
    connect_seconds: float | None = None,
    dial: Dial[Any] | None = None,
    context: ssl.SSLContext | None = None,
) -> HttpReply:
    """Send one request on a new connection, and return the reply.

    Args:
        method: HTTP method.
        url: The URL.
        headers: All headers except Host and Content-Length.
        body: The request body.
        max_body: Maximum bytes of the reply's body.
        seconds: Time limit in seconds.
        connect_seconds: Time limit for connecting.
        dial: A dial function, such as one of `guard_dial`. Without it, proxies of the environment are used.
        context: TLS context. Trusts the system's certificates by default.

    Raises:
        ClientError: No reply was received.
        TimeoutError: The request took longer than `seconds`.
    """
    pool = ConnectionPool(
        url, max_connections=1, max_body=max_body, connect_timeout=connect_seconds or seconds,
        tls=(context or tls()) if url.secure else None, dial=dial,
    )  # fmt: skip
    length = f"Content-Length: {len(body)}\r\n" if method in ("POST", "PUT") else ""
    head = f"{method} {url.target} HTTP/1.1\r\nhost: {url.authority}\r\n{lines(headers)}{length}Connection: close\r\n"
    try:
        async with asyncio.timeout(seconds):
            return await pool.send(f"{head}\r\n".encode("latin-1") + body, repeatable=False)
    finally:
        await pool.close()


@cache
def tls() -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificates."""
    return ssl.create_default_context()
