"""A pool of connections to one origin. A call takes a free connection, opens a new one, or waits.

A server may close an idle connection at any time, even while a request is being sent (RFC 9112 §9.3.1). A request that
must not run twice therefore gets a recently used connection or a new one.
"""

import asyncio
import ssl
import time
from collections import deque

from millstream._http.client.body import Inflow
from millstream._http.client.connection import HttpConnection, HttpReply
from millstream._http.client.dial import Dial, connect_directly
from millstream._http.client.errors import ConnectFailed, ConnectionLost, TlsFailed
from millstream._http.client.proxy import Proxy, no_proxy, proxy_error, proxy_for, tunnel
from millstream._http.client.url import Url

_MAX_IDLE = 3.0
"""Maximum idle seconds before a free connection is dropped. Servers usually close theirs after five seconds or more."""


class ConnectionPool:
    """A pool that sends requests as complete bytes, head and body."""

    def __init__(
        self, url: Url, *, max_connections: int, max_body: int, connect_timeout: float, tls: ssl.SSLContext | None,
        dial: Dial[HttpConnection] | None = None, inflow: Inflow | None = None,
    ) -> None:  # fmt: skip
        """Create a pool for one origin. `dial` opens connections and disables proxies."""
        # Configuration
        self._url = url
        self._max = max_connections
        self._max_body = max_body
        self._inflow = inflow or Inflow()
        self._dial_function: Dial[HttpConnection] = dial or connect_directly
        self._timeout = connect_timeout
        self._tls = (tls or ssl.create_default_context()) if url.secure else None
        self._proxy = proxy_for(url) if dial is None else None
        self._loop = asyncio.get_running_loop()
        # Connections
        self._all: set[HttpConnection] = set()
        self._free: list[HttpConnection] = []
        self._queue: deque[asyncio.Future[None]] = deque()
        self._connecting = 0
        self._closed = False

    async def send(self, data: bytes, *, repeatable: bool, owner: str = "") -> HttpReply:
        """Return the reply to one request. Cancelling the wait closes the connection.

        Args:
            data: the complete request.
            repeatable: whether the request can be sent twice without harm.
            owner: the caller against whose share the reply counts while it arrives.

        Raises:
            ConnectFailed: the connection failed.
            ConnectionLost: the server closed the connection before it answered.
        """
        proxy = None if self._url.secure else self._proxy
        if proxy is not None:
            data = proxy.forward(self._url, data)
        freshness = 3600.0 if repeatable else _MAX_IDLE
        while True:
            connection = self._take_free(freshness) or await self._take(freshness)
            waiter = connection.send(data, owner)
            try:
                reply = await waiter
                if proxy is not None and reply.status == 407:
                    raise proxy_error(proxy, self._url.authority, "407")
                return reply
            except ConnectionLost:
                if not (repeatable and connection.closed_before_reply):
                    raise
            except asyncio.CancelledError:
                connection.abort()
                raise

    async def check(self) -> None:
        """Open a connection beside those of the pool, and close it.

        Raises:
            ConnectFailed: the connection failed.
        """
        (await self._dial()).abort()

    async def close(self) -> None:
        """Close every connection. Waiting calls raise an error."""
        self._closed = True
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
            if connection.free_since >= oldest:
                return connection
            connection.abort()
        return None

    async def _take(self, freshness: float) -> HttpConnection:
        while True:
            if self._closed:
                raise ConnectionLost("The client is closed.")
            if (connection := self._take_free(freshness)) is not None:
                return connection
            if len(self._all) + self._connecting < self._max:
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
            self._connecting -= 1
            self._wake()  # lets the next waiter try
            raise
        self._connecting -= 1
        if self._closed:
            connection.abort()
            raise ConnectionLost("The client is closed.")
        self._all.add(connection)
        return connection

    async def _dial(self) -> HttpConnection:
        url, proxy = self._url, self._proxy
        try:
            async with asyncio.timeout(self._timeout):
                if proxy is not None:
                    return await self._connect_through(proxy)
                connection = await self._dial_function(self._connection, url, self._tls)
        except TimeoutError as exc:
            hint = " Use http:// if the server has no TLS." if url.secure else ""
            text = f"{url.origin} didn't accept a connection within {self._timeout:g} seconds.{hint}"
            raise ConnectFailed(text) from exc
        except ssl.SSLCertVerificationError as exc:
            raise tls_error(url, exc) from exc
        except ssl.SSLError as exc:
            raise TlsFailed(
                f"{url.origin} doesn't speak TLS ({exc.reason or exc}). Use http:// if the server has no TLS."
            ) from exc
        except OSError as exc:
            raise connect_error(url, exc) from exc
        return connection

    def _connection(self) -> HttpConnection:
        return HttpConnection(self._loop, self._max_body, self._release, self._inflow)

    async def _connect_through(self, proxy: Proxy) -> HttpConnection:
        """Return a connection to a forwarding proxy, or a tunnel through the proxy to the server."""
        url = self._url
        if self._tls is None:
            try:
                _, connection = await self._loop.create_connection(self._connection, proxy.host, proxy.port)
            except OSError as exc:
                raise no_proxy(proxy, exc) from exc
            return connection
        below = await tunnel(proxy, url)
        connection = self._connection()
        transport = await self._loop.start_tls(below, connection, self._tls, server_hostname=url.host)
        if transport is None:
            raise ConnectFailed(f"The proxy {proxy} closed the connection to {url.origin}.")
        connection.connection_made(transport)
        return connection

    def _release(self, connection: HttpConnection) -> None:
        """Handle a connection that became free or was closed."""
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


def connect_error(url: Url, exc: OSError) -> ConnectFailed:
    """Return the error for a server that doesn't respond."""
    remedy = "Check the host and port, and that the server is running."
    return ConnectFailed(f"There is no server at {url.origin}: {os_error_text(exc)}.", remedy=remedy)


def tls_error(url: Url, exc: ssl.SSLCertVerificationError) -> TlsFailed:
    """Return the error for an untrusted certificate."""
    return TlsFailed(
        f"The certificate of {url.origin} isn't trusted: {exc.verify_message}.",
        remedy="If it's your own certificate, pass a context that trusts it (Options.tls).",
    )


def os_error_text(exc: OSError) -> str:
    """Return the operating system's error message without its numbers."""
    text = exc.strerror or str(exc)
    if "Connect call failed" in text or "Multiple exceptions" in text:
        return "nothing listens on that port"
    return text[:1].lower() + text[1:] if text else type(exc).__name__
