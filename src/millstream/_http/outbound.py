"""The one way out: a small HTTP client for URLs that others may have chosen.

It asks `https`, and plain `http` of this machine only. The address is looked up once, judged, and then connected to, so
that a name cannot become another address in between. No redirect is followed, size and time have caps, and nothing of
the environment (proxies, credentials) takes part. A fetch is one connection: what is fetched this way is kept.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import BoundedSemaphore, Thread
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import httptools
from msgspec import Struct

TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
_MAX_HEAD = 16 * 1024
_MAX_URL = 2048
_NAT64 = 0x0064FF9B << 96
"""64:ff9b::/96, RFC 6052: the last 32 bits are an IPv4 address."""
_LOOKUPS = BoundedSemaphore(16)
"""Names of strangers that are looked up at a time, in this process."""
_UNICAST = ip_network("2000::/3")
"""All that is assigned as global unicast (RFC 4291 §2.4). The rest embeds other addresses, or is of some network."""
_ODD = (ip_network("168.63.129.16/32"), ip_network("192.88.99.0/24"), ip_network("3fff::/20"))
"""What tells Azure's machines about themselves; relays of 6to4; examples (RFC 9637). Libraries call them global."""


class OutboundError(ValueError):
    """What was asked for was not fetched; the text says why, and never what an inner address answered."""


class Fetched(Struct, frozen=True):
    """An answer with status 200."""

    body: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case."""


Judge = Callable[[str], bool]
"""Whether an address may be connected to."""


def is_public(address: str) -> bool:
    """Whether an address is of the public Internet, however it is written: nothing of this machine or its networks."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and int(ip) >> 32 == _NAT64 >> 32:
            inner = IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in each for each in _ODD)


def check_url(url: str) -> SplitResult:
    """A URL that may be asked: https, or http of this machine.

    Raises:
        OutboundError: it isn't one.
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
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(host)):
        raise OutboundError("Only https is asked, and http of this machine.")
    return parts


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return False


async def fetch(
    url: str,
    *,
    form: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    judge: Judge = is_public,
    max_bytes: int = MAX_BYTES,
    seconds: float = TIMEOUT,
) -> Fetched:
    """GET a URL, or POST a form to it.

    Args:
        url: what to ask.
        form: an encoded form to send.
        headers: further headers; they go to this origin and no other.
        judge: which addresses are fine. For a URL that the operator has written, any is.
        max_bytes: of the body.
        seconds: for all of it.

    Raises:
        OutboundError: it was not fetched, or the answer is not 200.
    """
    parts = check_url(url)
    head = {
        "host": parts.netloc, "accept": "application/json", "connection": "close", "user-agent": "millstream",
        **({} if form is None else {"content-type": "application/x-www-form-urlencoded"}), **(headers or {}),
    }  # fmt: skip
    if any(not value.isprintable() for value in head.values()):
        raise OutboundError("A header can't hold that.")
    if form is not None:
        head["content-length"] = str(len(form))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    message = f"{'GET' if form is None else 'POST'} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (form or b"")
    try:
        async with asyncio.timeout(seconds):
            return await _exchange(parts, message, judge, max_bytes)
    except TimeoutError:
        raise OutboundError(f"{parts.hostname} didn't answer in {seconds:g} seconds.") from None
    except (OSError, ssl.SSLError, UnicodeError) as exc:  # the last for names that no resolver can be asked for
        raise OutboundError(f"{parts.hostname} can't be reached: {type(exc).__name__}.") from exc


async def _exchange(parts: SplitResult, message: bytes, judge: Judge, max_bytes: int) -> Fetched:
    host, secure = parts.hostname or "", parts.scheme == "https"
    address, port = await _resolve(host, parts.port or (443 if secure else 80), judge)
    reader, writer = await asyncio.open_connection(
        address, port, ssl=tls() if secure else None, server_hostname=host if secure else None, limit=_MAX_HEAD
    )
    try:
        writer.write(message)
        await writer.drain()
        answer = _Answer(max_bytes)
        while not answer.complete:
            data = await reader.read(16 * 1024)
            answer.feed(data)
            if not data:
                break
    finally:
        writer.transport.abort()
    return answer.result(parts)


async def _resolve(host: str, port: int, judge: Judge) -> tuple[str, int]:
    """One address of a name. If any of its addresses may not be asked, none is: the name cannot be trusted."""
    loop = asyncio.get_running_loop()
    found = await (
        _look_up(host, port) if judge is is_public else loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    addresses = [cast("tuple[Any, ...]", each[4]) for each in found]
    here = _is_this_machine(host)
    for each in addresses:
        if not (ip_address(str(each[0]).partition("%")[0]).is_loopback if here else judge(str(each[0]))):
            raise OutboundError(f"{host} is an address that isn't asked.")
    if here and judge is is_public:
        raise OutboundError(f"{host} is an address that isn't asked.")
    return str(addresses[0][0]), int(addresses[0][1])


async def _look_up(host: str, port: int) -> list[Any]:
    """What `getaddrinfo` finds for a name that a stranger has chosen, and whose server may never answer.

    Nothing ends a lookup, so each has a thread of its own, and there are few: the loop's threads are for other things,
    such as passwords and the names of issuers.
    """
    if not _LOOKUPS.acquire(blocking=False):
        raise OutboundError("Too many names are looked up just now.")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def tell(result: list[Any] | OSError | UnicodeError) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    def look() -> None:
        result: list[Any] | OSError | UnicodeError
        try:
            result = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            result = exc
        finally:
            _LOOKUPS.release()
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(tell, result)

    Thread(target=look, name="lookup", daemon=True).start()
    return await found


@cache
def tls() -> ssl.SSLContext:
    """What verifies the peers."""
    return ssl.create_default_context()


class _Answer:
    """Reads a response, as httptools tells of it."""

    def __init__(self, max_bytes: int) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._max = max_bytes
        self._seen = 0
        self._in_head = True
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Read on.

        Raises:
            OutboundError: it isn't HTTP, or too large.
        """
        if self._in_head:
            self._seen += len(data)
            if self._seen > _MAX_HEAD + self._max:
                raise OutboundError("The answer is too large.")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            raise OutboundError("The answer isn't HTTP.") from None
        if len(self._body) > self._max:
            raise OutboundError("The answer is too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.complete = True

    def result(self, parts: SplitResult) -> Fetched:
        """The answer.

        Raises:
            OutboundError: it broke off, or its status is not 200: a redirect is not followed either.
        """
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        if self._in_head or (framed and not self.complete):
            raise OutboundError(f"The answer of {parts.hostname} broke off.")
        status = self._parser.get_status_code()
        if status != 200:
            raise OutboundError(f"{parts.hostname} answered {status}.")
        if self._headers.get(b"content-encoding", b"identity") != b"identity":
            raise OutboundError(f"The answer of {parts.hostname} has a content coding.")
        return Fetched(bytes(self._body), self._headers)
