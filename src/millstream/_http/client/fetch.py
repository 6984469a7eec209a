"""Single requests: for metadata, keys, and tokens. No redirect is followed, and size and time are bounded.

`request` returns any reply. `fetch` is for URLs that others may have chosen: https, or http of this machine, judged
addresses, status 200, and nothing of the environment (proxies, credentials).
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from msgspec import Struct

from millstream._http.client.connection import HttpReply, lines
from millstream._http.client.dial import AddressRefused, Dial, Judge, guard_dial, is_public, is_this_machine
from millstream._http.client.errors import BadAnswer, ClientError, ConnectionLost, TargetError, TooLarge
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import Url, parse

TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
_MAX_HEAD = 16 * 1024
_MAX_URL = 2048


class OutboundError(ValueError):
    """A fetch failed. The text says why, without content from internal addresses."""


class FetchedDocument(Struct, frozen=True):
    """An answer with status 200."""

    body: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case."""


def check_url(url: str) -> SplitResult:
    """Return the parts of a URL that may be fetched: https, or http of this machine.

    Raises:
        OutboundError: it may not.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise OutboundError("The URL is malformed.") from None
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or not host or port == 0:
        raise OutboundError("The URL is malformed.")
    if parts.username is not None or parts.password is not None:
        raise OutboundError("A URL with a user name isn't asked.")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_this_machine(host)):
        raise OutboundError("Only https is asked, and http of this machine.")
    return parts


async def fetch(
    url: str,
    *,
    form: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    judge: Judge = is_public,
    max_bytes: int = MAX_BYTES,
    seconds: float = TIMEOUT,
) -> FetchedDocument:
    """GET a URL, or POST a form to it.

    Args:
        url: what to ask.
        form: an encoded form to send.
        headers: further headers; they go to this origin and no other.
        judge: which addresses are fine; `anywhere` for a URL that the operator has written.
        max_bytes: of the body.
        seconds: for all of it.

    Raises:
        OutboundError: it was not fetched, or the answer is not 200.
    """
    host = check_url(url).hostname
    try:
        where = parse(url)
    except TargetError:
        raise OutboundError("The URL is malformed.") from None
    head = {"accept": "application/json", "user-agent": "millstream", **(headers or {})}
    if form is not None:
        head["content-type"] = "application/x-www-form-urlencoded"
    if any(not value.isprintable() for value in head.values()):
        raise OutboundError("A header can't hold that.")
    try:
        reply = await request(
            "GET" if form is None else "POST", where, head, form or b"", dial=guard_dial(judge), max_body=max_bytes,
            max_head=_MAX_HEAD, seconds=seconds,
        )  # fmt: skip
    except (ClientError, AddressRefused, OSError, UnicodeError) as exc:  # the last for names that can't be looked up
        raise OutboundError(_reason(exc, host or "", seconds)) from exc
    if reply.status != 200:
        raise OutboundError(f"{host} answered {reply.status}.")
    if reply.stream is not None:
        raise OutboundError(f"The answer of {host} is a stream.")
    if reply.headers.get(b"content-encoding", b"identity") != b"identity":
        raise OutboundError(f"The answer of {host} has a content coding.")
    return FetchedDocument(reply.body, reply.headers)


def _reason(exc: Exception, host: str, seconds: float) -> str:
    match exc:
        case AddressRefused():
            return str(exc)
        case TimeoutError():
            return f"{host} didn't answer in {seconds:g} seconds."
        case ConnectionLost():
            return f"The answer of {host} broke off."
        case TooLarge():
            return "The answer is too large."
        case BadAnswer():
            return "The answer isn't HTTP."
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
    max_head: int = 512 * 1024,
    connect_seconds: float | None = None,
    dial: Dial[Any] | None = None,
    context: ssl.SSLContext | None = None,
) -> HttpReply:
    """Send one request on a connection of its own, and return the reply.

    Args:
        method: of HTTP.
        url: where to.
        headers: all but Host and Content-Length.
        body: what to send.
        max_body: bytes of the reply's body.
        seconds: for all of it.
        max_head: bytes of the reply's head.
        connect_seconds: for the connection.
        dial: connects, such as `guard_dial`. Without it, proxies of the environment count.
        context: certificates to trust; those of the system by default.

    Raises:
        ClientError: there's no reply.
        TimeoutError: it takes longer than `seconds`.
    """
    pool = ConnectionPool(
        url, max_connections=1, max_body=max_body, max_head=max_head, connect_timeout=connect_seconds or seconds,
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
    """Return the context that trusts what the system trusts."""
    return ssl.create_default_context()
