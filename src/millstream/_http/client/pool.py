"""Connections to one origin: a pool, dial functions that connect to any address or only to permitted ones, and single
requests for metadata, keys, and tokens, without redirects and with limits on size and time.

`request` returns any reply. `fetch` is for untrusted URLs: it accepts https, or http on this machine, checks addresses,
requires status 200, and ignores proxies and credentials of the environment.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import SplitResult

from msgspec import Struct

from millstream._http.client.connection import HttpConnection, HttpReply
from millstream._http.client.errors import ClientError, ConnectFailed, ConnectionLost, TlsFailed
from millstream._http.client.inflow import Inflow
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import Proxy, Url, no_proxy, parse_url, proxy_error, proxy_for
from millstream._http.hosts import is_loopback
from millstream._protocol.principal import Share
from millstream._protocol.uri import split_url
from millstream._tasks import run_in_thread
from millstream._text import pluralize

P = TypeVar("P", bound=asyncio.Protocol)

Dial = Callable[[Callable[[], P], Url, ssl.SSLContext | None], Awaitable[P]]
"""``await dial(make_protocol, url, tls)`` connects to the server of a URL."""
AddressCheck = Callable[[str], bool]
"""Returns whether connecting to an address is permitted."""

_NAT64 = 0x0064FF9B << 96
"""64:ff9b::/96, RFC 6052: the last 32 bits are an IPv4 address."""
_lookups = Share(16)
"""The running lookups of untrusted names in this process."""
_lock = Lock()
"""Held while `_lookups` changes, because lookups end in threads."""
_INTERNET = (ip_network("0.0.0.0/0"), ip_network("2000::/3"))
"""IPv4, and IPv6's assigned global unicast range (RFC 4291 §2.4)."""
_SPECIAL_NETWORKS = tuple(map(ip_network, (
    # https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    # https://www.iana.org/assignments/iana-ipv6-special-registry: with Teredo and 6to4, which embed IPv4 addresses
    "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    # the metadata service of Azure
    "168.63.129.16/32",
)))  # fmt: skip
"""Networks that aren't the public Internet. `ipaddress.is_global` differs between versions of Python."""


class AddressRefused(Exception):
    """The guard accepts none of the host's addresses, or too many lookups are running. The text names the host."""


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public Internet, in any notation: ``is_public("192.0.2.1")``.

    Args:
        address: An IP address, not a name.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = IPv4Address(int(ip) & 4294967295) if int(ip) >> 32 == _NAT64 >> 32 else ip.ipv4_mapped or ip
    return any(ip in each for each in _INTERNET) and not any(ip in each for each in _SPECIAL_NETWORKS)


def allow_any(address: str) -> bool:
    """Accept any address, because the operator configured the URL: ``guard_dial(allow_any)``.

    Args:
        address: An IP address, not a name.
    """
    return True


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine, by a name that needs no lookup: ``is_this_machine(url.host)``.

    Args:
        host: A name or an IP address.
    """
    return is_loopback(host)


async def connect_directly(make: Callable[[], P], url: Url, tls: ssl.SSLContext | None) -> P:
    """Connect to the server of a URL, at any of its addresses."""
    _, protocol = await asyncio.get_running_loop().create_connection(make, url.host, url.port, ssl=tls)
    return protocol


def guard_dial(is_allowed: AddressCheck, owner: str = "") -> Dial[Any]:
    """Return a dial function that connects only to some addresses: ``ConnectionPool(…, dial=guard_dial(is_public))``.

    Use it for URLs from untrusted sources, to prevent SSRF. It resolves a name once, checks every address, and connects
    to one of the checked addresses, so DNS rebinding has no effect. Lookups count against the share of `owner`, see
    `Share`.

    A name is rejected if any of its addresses isn't accepted, because that suggests an attack. Names of this machine
    resolve to loopback addresses only, which `is_public` refuses.

    Args:
        is_allowed: Returns whether connecting to an address is permitted.
        owner: The caller against whose share lookups count.
    """

    async def connect(make: Callable[[], P], url: Url, tls: ssl.SSLContext | None) -> P:
        host, loop = url.host, asyncio.get_running_loop()
        found = await (
            _look_up(host, url.port, owner)
            if is_allowed is is_public
            else loop.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
        )
        addresses = [str(each[4][0]) for each in found]
        is_local = is_this_machine(host)
        checks = (
            ip_address(each.partition("%")[0]).is_loopback if is_local else is_allowed(each) for each in addresses
        )
        if (is_local and is_allowed is is_public) or not all(checks):
            raise AddressRefused(f"Requests to the address of {host} aren't allowed.")
        _, protocol = await loop.create_connection(
            make, addresses[0], url.port, ssl=tls, server_hostname=None if tls is None else host
        )
        return protocol

    return connect


async def _look_up(host: str, port: int, owner: str) -> list[Any]:
    """Look up an untrusted name. Its name server may never respond.

    A lookup can't be canceled, so each runs in its own thread, up to a limit. That keeps the event loop's thread pool
    free for other work, such as hashing passwords.
    """
    with _lock:
        if not _lookups.take(owner):
            raise AddressRefused("Too many names are being looked up. Retry later.")

    def look() -> list[Any]:
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        finally:
            with _lock:
                _lookups.leave(owner)

    return await run_in_thread(look, "lookup")


_MAX_IDLE = 3.0
"""Maximum idle seconds before a free connection is dropped. Servers usually close theirs after five seconds or more."""


_DISTRUST = 300.0
"""Seconds for which a server that closed a connection instead of responding isn't trusted to keep others open."""


class ConnectionPool:
    """A pool of connections to one origin: ``reply = await pool.send(request, repeatable=False)``.

    It sends requests as complete bytes, head and body. A call takes a free connection, opens one, or waits.

    A server may close an idle connection at any time, even while a request is being sent (RFC 9112 §9.3.1). A request
    that must not run twice therefore gets a recently used connection or a new one, and isn't sent again. After a server
    has closed a reused connection instead of responding, such requests get new connections for a while.

    Args:
        url: Any URL of the origin.
        max_connections: Maximum open connections.
        max_body: Maximum bytes of a reply's body.
        connect_timeout: Seconds to wait for a connection.
        tls: Certificates to trust or present. By default, the system's.
        dial: Opens connections, and disables proxies of the environment.
        inflow: Counts bytes that arrive.
        decompress: Whether to decompress replies that a server compressed without a request. Otherwise they stay
            compressed.
    """

    def __init__(
        self, url: Url, *, max_connections: int, max_body: int, connect_timeout: float,
        tls: ssl.SSLContext | None = None, dial: Dial[HttpConnection] | None = None, inflow: Inflow | None = None,
        decompress: bool = False,
    ) -> None:  # fmt: skip
        self._url = url
        self.maximum: int = max_connections
        """Maximum open connections."""
        self._max_body = max_body
        self._inflow = inflow or Inflow()
        self._decompresses = decompress
        self._dial_function: Dial[HttpConnection] = dial or connect_directly
        self._timeout = connect_timeout
        self._tls = (tls or ssl.create_default_context()) if url.secure else None
        self._proxy = proxy_for(url) if dial is None else None
        self._loop = asyncio.get_running_loop()
        # Connections
        self._all: set[HttpConnection] = set()
        self._has_answered = False
        self._free: list[HttpConnection] = []
        self._queue: deque[asyncio.Future[None]] = deque()
        self._connecting = 0
        self._dials: set[asyncio.Timeout] = set()
        self._closed = False
        self._distrusts_until = 0.0
        """Time until which requests that must not run twice get new connections."""

    async def send(self, data: bytes, *, repeatable: bool, owner: str = "", switches: bool = False) -> HttpReply:
        """Return the reply to one request. Canceling the wait closes the connection.

        Args:
            data: The complete request.
            repeatable: Whether the request can be sent twice without harm.
            owner: The caller against whose share the reply counts while it arrives.
            switches: Whether the server may switch protocols.

        Raises:
            ConnectFailed: The connection failed.
            ConnectionLost: The server closed the connection before it answered.
        """
        proxy = None if self._url.secure else self._proxy
        if proxy is not None:
            data = proxy.forward(self._url, data)
        freshness = 3600.0 if repeatable else -1.0 if self._loop.time() < self._distrusts_until else _MAX_IDLE
        while True:
            connection = self._take_free(freshness) or await self._take(freshness)
            waiter = connection.send(data, owner, switches=switches)
            try:
                reply = await waiter
                if proxy is not None and reply.status == 407:
                    raise proxy_error(proxy, self._url, reply.status)
                return reply
            except ConnectionLost:
                if connection.closed_before_reply:
                    self._distrusts_until = self._loop.time() + _DISTRUST
                if not (repeatable and connection.closed_before_reply):
                    raise
            except asyncio.CancelledError:
                connection.abort()
                raise

    @property
    def proxy_headers(self) -> Mapping[str, str]:
        """The headers for the proxy, if the pool uses one."""
        return {} if self._proxy is None else self._proxy.headers

    async def check(self) -> None:
        """Open and close a connection outside the pool.

        Raises:
            ConnectFailed: The connection failed.
        """
        (await self._dial()).abort()

    async def close(self) -> None:
        """Close every connection. Waiting calls raise an error."""
        self._closed = True
        for limit in self._dials:
            if not limit.expired():
                limit.reschedule(0.0)
        for connection in list(self._all):
            connection.abort()
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_exception(ConnectionLost("The client was closed."))

    def _take_free(self, freshness: float) -> HttpConnection | None:
        if not self._free or self._closed:
            return None
        oldest = time.monotonic() - freshness
        while self._free:
            connection = self._free.pop()
            if connection.closed:
                continue
            # Some servers close after each response without saying so, and the event loop hasn't read that yet.
            if connection.free_since >= oldest and not (connection.poller is not None and connection.poller.poll(0)):
                return connection
            connection.abort()
        return None

    async def _take(self, freshness: float) -> HttpConnection:
        while True:
            if self._closed:
                raise ConnectionLost("The client is closed.")
            if (connection := self._take_free(freshness)) is not None:
                return connection
            if len(self._all) + self._connecting < self.maximum:
                return await self._connect()
            waiter = self._loop.create_future()
            self._queue.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # passes the slot to the next waiter
                raise

    async def _connect(self) -> HttpConnection:
        self._connecting += 1
        try:
            connection = await self._dial()
        except BaseException:
            self._wake()  # let the next waiter try
            raise
        finally:
            self._connecting -= 1
        if self._closed:
            connection.abort()
            raise ConnectionLost("The client is closed.")
        self._all.add(connection)
        return connection

    async def _dial(self) -> HttpConnection:
        url, proxy, limit = self._url, self._proxy, asyncio.timeout(self._timeout)
        self._dials.add(limit)
        try:
            async with limit:
                if proxy is not None:
                    return await self._connect_through(proxy)
                return await self._dial_function(self._connection, url, self._tls)
        except TimeoutError as exc:
            hint = " Use http:// if the server has no TLS." if url.secure else ""
            text = f"{url.origin} didn't accept a connection within {pluralize(self._timeout, 'second')}.{hint}"
            raise ConnectFailed(text) from exc
        except OSError as exc:
            raise connect_error(url, exc) from exc
        finally:
            self._dials.discard(limit)

    def _connection(self) -> HttpConnection:
        made = HttpConnection(self._loop, self._max_body, self._release, self._inflow, decompress=self._decompresses)
        made.has_answered = self._has_answered
        return made

    async def _connect_through(self, proxy: Proxy) -> HttpConnection:
        """Return a connection to a forwarding proxy, or a tunnel through the proxy to the server."""
        url = self._url
        try:
            _, below = await self._loop.create_connection(self._connection, proxy.host, proxy.port)
        except OSError as exc:
            raise no_proxy(proxy, exc) from exc
        if self._tls is None:
            return below
        try:
            reply = await below.send(proxy.connect(url), "")
        except ClientError as exc:
            raise ConnectFailed(f"The proxy {proxy} didn't respond to the request to connect to {url.origin}.") from exc
        finally:
            if below.tunnel is None:
                below.abort()
        if below.tunnel is None:
            raise proxy_error(proxy, url, reply.status)
        connection = self._connection()
        transport = await self._loop.start_tls(below.tunnel, connection, self._tls, server_hostname=url.host)
        if transport is None:
            raise ConnectFailed(f"The proxy {proxy} closed the connection to {url.origin}.")
        connection.connection_made(transport)
        return connection

    def _release(self, connection: HttpConnection) -> None:
        """Handle a connection that became free or was closed."""
        self._has_answered |= connection.reply_count > 0
        if connection.closed:
            self._all.discard(connection)
        else:
            self._free.append(connection)
        self._wake()

    def _wake(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


RAISE_FILE_LIMIT = "Raise the limit: `ulimit -n`, or LimitNOFILE of systemd."
"""Remedy of a process that has too many open files."""


_TRUST_IT = "If it's your own certificate, set SSL_CERT_FILE to its file, or trust it in Options.tls."
_RENEW_IT = "Its owner has to renew it. If others can use it, check the clock of this machine."
_OTHER_NAME = "Use the name or address that the certificate was issued for."
_TLS_REMEDIES = {9: _RENEW_IT, 10: _RENEW_IT, 62: _OTHER_NAME, 64: _OTHER_NAME}
"""Code of OpenSSL's reason (X509_V_ERR) -> remedy: not yet valid, expired, another host name, another IP address."""


def connect_error(url: Url, exc: OSError) -> ConnectFailed:
    """Return the error for a server that doesn't respond, or whose TLS isn't trusted."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        remedy = _TLS_REMEDIES.get(exc.verify_code, _TRUST_IT)
        return TlsFailed(f"The certificate of {url.origin} isn't trusted: {exc.verify_message}.", remedy=remedy)
    if isinstance(exc, ssl.SSLError):
        remedy = f"Use {url.scheme[:-1]}:// if the server has no TLS."
        return TlsFailed(f"{url.origin} doesn't speak TLS ({exc.reason or exc}).", remedy=remedy)
    if exc.errno in (errno.EMFILE, errno.ENFILE):
        return ConnectFailed(f"{url.origin} can't be connected to: {os_error_text(exc)}.", remedy=RAISE_FILE_LIMIT)
    remedy = "Check the host and port, and that the server is running."
    return ConnectFailed(f"There is no server at {url.origin}: {os_error_text(exc)}.", remedy=remedy)


def os_error_text(exc: OSError) -> str:
    """Return the operating system's error message without its numbers."""
    text = exc.strerror or str(exc)
    if "Connect call failed" in text or "Multiple exceptions" in text:
        return "nothing listens on that port"
    return text[:1].lower() + text[1:] if text else type(exc).__name__


TIMEOUT = 5.0
MAX_BYTES = 64 * 1024
_MAX_URL = 2048


class OutboundError(ValueError):
    """A fetch failed. The message gives the reason, without content from internal addresses."""

    status: int = 0
    """Status of the response, if it isn't 200."""
    body: bytes = b""
    """Its body."""


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
        parts = split_url(url)
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
        form: An encoded form to send.
        headers: Further headers, sent to this origin only.
        is_allowed: Returns whether an address is allowed. Use `allow_any` for a URL that the operator has configured.
        max_bytes: Maximum bytes of the body.
        seconds: Time limit in seconds.

    Raises:
        OutboundError: The request failed, or the status isn't 200.
    """
    host = check_url(url).hostname
    head = {"accept": "application/json", "user-agent": "millstream", **(headers or {})}
    if form is not None:
        head["content-type"] = "application/x-www-form-urlencoded"
    if any(not value.isprintable() for value in head.values()):
        raise OutboundError("A header contains a line break or a character that isn't allowed.")
    try:
        reply = await request(
            "GET" if form is None else "POST", parse_url(url), head, form or b"",
            dial=guard_dial(is_allowed, "documents"), max_body=max_bytes, seconds=seconds,
        )  # fmt: skip
    except (ClientError, AddressRefused, OSError, UnicodeError) as exc:  # UnicodeError: an invalid host name
        raise OutboundError(_reason(exc, host or "", seconds)) from exc
    if reply.status != 200:
        refused = OutboundError(f"{host} responded with {reply.status}.")
        refused.status, refused.body = reply.status, reply.body
        raise refused
    if reply.stream is not None:
        raise OutboundError(f"{host} sent a stream instead of a complete response.")
    if reply.headers.get(b"content-encoding", b"identity") != b"identity":
        raise OutboundError(f"{host} sent a compressed response, which isn't supported.")
    return FetchedDocument(reply.body, reply.headers)


def _reason(exc: Exception, host: str, seconds: float) -> str:
    if isinstance(exc, TimeoutError):
        return f"{host} didn't respond within {pluralize(seconds, 'second')}."
    text = exc.message if isinstance(exc, ClientError) else str(exc)  # its remedies are for users of `Client`
    if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
        text += " If your organization has a certificate authority, set SSL_CERT_FILE to its certificate file."
    return text


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
    """Send one request on a new connection and return the reply.

    Args:
        method: HTTP method.
        headers: All headers except Host and Content-Length.
        body: The request body.
        max_body: Maximum bytes of the reply's body.
        seconds: Time limit in seconds.
        connect_seconds: Time limit for connecting.
        dial: A dial function, such as one from `guard_dial`. Without it, proxies of the environment are used.
        context: TLS context. Trusts the system's certificates by default.

    Raises:
        ClientError: No reply was received.
        TimeoutError: The request took longer than `seconds`.
    """
    pool = ConnectionPool(
        url, max_connections=1, max_body=max_body, connect_timeout=connect_seconds or seconds,
        tls=(context or tls()) if url.secure else None, dial=dial, decompress=True,
    )  # fmt: skip
    try:
        head = encode_headers({"host": url.authority, **headers, "Connection": "close"})
        async with asyncio.timeout(seconds):
            return await pool.send(encode_request(method, url.target, head, body), repeatable=False)
    finally:
        await pool.close()


@cache
def tls() -> ssl.SSLContext:
    """Return a TLS context that trusts the system's certificates."""
    return ssl.create_default_context()
