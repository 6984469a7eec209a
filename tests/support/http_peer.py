"""A server of toy handlers in the test's loop, our own or plain ASGI, and a raw socket client for it."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState as UvicornState

from millstream import Server
from millstream._app.routes import Routes
from millstream._app.server_process.asgi_application import prepare
from millstream._config import Settings
from millstream._http.asgi import AsgiAdapter
from millstream._http.hosts import HostPolicy, TrustedProxies
from millstream._http.message import STREAM_HEAD, Handler, HttpLimits
from millstream._http.server import Endpoints
from millstream._http.server.guard import ConnectionGuard, ServerState
from millstream._http.server.listener import SocketListener, readable
from patience import WAIT

__all__ = ["STREAM_HEAD", "Endpoints", "HostPolicy", "HttpLimits", "SocketListener", "prepare"]

HEAD = b"Host: 127.0.0.1\r\n"
NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A TLS context without certificates, for plain HTTP: loading the system's takes longer than most tests."""


def listed_paths(routes: Routes) -> dict[str, tuple[str, ...]]:
    """Return every path with its methods, and every prefix followed by a star."""
    below = [(f"{prefix}*", handlers) for prefix, handlers in routes._prefixes]
    return {path: tuple(handlers) for path, handlers in (*routes._exact.items(), *below)}


def behind_proxy() -> TrustedProxies:
    """Return the proxies for `serve`, so that ``X-Forwarded-For`` names the client."""
    return TrustedProxies(["127.0.0.1"])


class ToyApp:
    """An ASGI application with a route table, like `Server`: exact paths to handlers."""

    def __init__(self, routes: dict[tuple[str, str], Handler], settings: Settings) -> None:
        limits = HttpLimits.of(settings)
        policy = HostPolicy(settings.allowed_hosts, settings.allowed_origins, loopback_bind=True)
        self.table = Endpoints(
            lambda method, path: routes.get((method, path)),
            limits=limits,
            policy=policy,
            hot={(key[0].encode(), key[1].encode()): (handler, *key) for key, handler in routes.items()},
        )
        self.adapter = AsgiAdapter(self.table)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle HTTP only: the lifespan is off."""
        await self.adapter(scope, receive, send)


class Peer:
    """A client connection for raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def line(self) -> bytes:
        """Return one line without its end, or an empty string at the end of the connection."""
        return (await asyncio.wait_for(self.reader.readline(), WAIT)).removesuffix(b"\r\n")

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        """Return the status line and headers, with the first of several cookies."""
        status = await self.line()
        assert status.startswith(b"HTTP/1.1 "), status
        headers: dict[bytes, bytes] = {}
        while line := await self.line():
            name, _, value = line.partition(b": ")
            assert name not in headers or name in (b"vary", b"set-cookie"), name
            if name != b"set-cookie" or name not in headers:
                headers[name.lower()] = value
        return int(status.split()[1]), headers

    async def chunk(self) -> bytes:
        """Return one chunk of a chunked body. The last one is empty."""
        size = int(await self.line(), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size + 2), WAIT)
        return data[:-2]

    async def reply(self, *, head_only: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        """Return a complete reply."""
        status, headers = await self.head()
        if head_only or status in (204, 304):
            return status, headers, b""
        if headers.get(b"transfer-encoding") == b"chunked":
            body = b""
            while data := await self.chunk():
                body += data
            return status, headers, body
        size = int(headers[b"content-length"])
        return status, headers, await asyncio.wait_for(self.reader.readexactly(size), WAIT)

    async def rest(self) -> bytes:
        """Return everything until the server closes or resets the connection."""
        data = b""
        with suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(self.reader.read(65536), WAIT):
                data += piece
        return data

    def close(self) -> None:
        """Drop the connection."""
        self.writer.close()


class Connections(set[Any]):
    """The server's set of connections, which signals removals."""

    def __init__(self) -> None:
        super().__init__()
        self._left = asyncio.Event()

    def discard(self, element: Any, /) -> None:
        """Remove a lost connection. The server calls this."""
        super().discard(element)
        self._left.set()

    async def shrink(self, size: int) -> None:
        """Wait until there are at most `size` connections."""
        async with asyncio.timeout(WAIT):
            while len(self) > size:
                self._left.clear()
                await self._left.wait()


class RunningServer:
    """A test's server: its port, its state, and the client connections."""

    def __init__(
        self,
        state: ServerState | UvicornState,
        port: int,
        *,
        guard: ConnectionGuard | None = None,
        source_address: Callable[[], str] | None = None,
    ) -> None:
        """`source_address` returns the source address of each connection."""
        self.state: Any = state
        self._connection_guard = guard
        self.port = port
        self.source_address = source_address
        self.peers: list[Peer] = []

    @property
    def is_own_server(self) -> bool:
        """True for our own server, False for plain ASGI."""
        return self._connection_guard is not None

    @property
    def guard(self) -> ConnectionGuard:
        """The connection guard of our own server."""
        assert self._connection_guard is not None
        return self._connection_guard

    async def connect(self, first: bytes = b"", *, small_buffer: bool = False) -> Peer:
        """Open a connection. A small receive buffer makes a slow reader.

        The bytes `first` are sent before the server sees the connection, so none of its timeouts expires.
        """
        sock = socket.socket()
        if small_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        if self.source_address is not None:
            sock.bind((self.source_address(), 0))
        try:
            sock.connect(("127.0.0.1", self.port))  # returns immediately: the kernel accepts
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        sock.send(first)
        peer = Peer(*await asyncio.open_connection(sock=sock, limit=4096 if small_buffer else 2**16))
        self.peers.append(peer)
        return peer

    def drop_connections(self) -> None:
        """Drop all client connections."""
        for peer in self.peers:
            peer.writer.transport.abort()

    async def wait_for_connections(self, size: int) -> None:
        """Wait until the server has at most `size` connections."""
        connections: Any = self.state.connections
        await connections.shrink(size)


@asynccontextmanager
async def serve(
    app: Any,
    *,
    lane: bool = True,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    proxies: TrustedProxies | None = None,
    **config: Any,
) -> AsyncIterator[RunningServer]:
    """Serve on a loopback port, or a free one if it's 0, with our own server. Without `lane`, use plain ASGI.

    Applications without a route table also use plain ASGI. `config` goes to uvicorn.
    """
    table = await _find_endpoints(app)
    if not lane or table is None:
        async with serve_asgi(app, port=port, tls=tls, **config) as running:
            yield running
        return
    state = ServerState()
    state.connections = Connections()
    listener = SocketListener(table, tls=tls, proxies=proxies, state=state)
    server = await asyncio.get_running_loop().create_server(
        listener.make_protocol, "127.0.0.1", port, ssl=tls, reuse_address=True
    )
    running = RunningServer(state, server.sockets[0].getsockname()[1], guard=listener.guard)
    try:
        yield running
    finally:
        await _end(server, running)


async def make_listener(app: Server) -> SocketListener:
    """Return a listener of our own server for an application, to feed it with bytes."""
    return SocketListener(prepare(app, await app.start()))


async def _find_endpoints(app: Any) -> Endpoints | None:
    """Return the endpoints for our own server, or None if only ASGI can serve the app."""
    if isinstance(app, Endpoints):
        return app
    if isinstance(app, ToyApp):
        return app.table
    if isinstance(app, Server):
        return prepare(app, await app.start())
    return None


@asynccontextmanager
async def serve_asgi(
    app: Any, *, port: int = 0, tls: ssl.SSLContext | None = None, **config: Any
) -> AsyncIterator[RunningServer]:
    """Serve an ASGI application with uvicorn's protocol, without the ticks of `uvicorn.Server`, which are slow."""
    settings = uvicorn.Config(app, http=HttpToolsProtocol, log_config=None, access_log=False, **config)
    settings.load()
    state = UvicornState()
    state.default_headers = settings.encoded_headers
    state.connections = Connections()
    loop = asyncio.get_running_loop()
    factory = partial(HttpToolsProtocol, config=settings, server_state=state, app_state={}, _loop=loop)
    server = await loop.create_server(factory, "127.0.0.1", port, ssl=tls, reuse_address=True)
    running = RunningServer(state, server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        await _end(server, running)


async def _end(server: asyncio.Server, running: RunningServer) -> None:
    waiting = True
    while waiting:  # asyncio never closes a connection whose transport it would create after the server's close
        waiting = bool(readable(server.sockets))
        await asyncio.sleep(0)
    server.close()
    await asyncio.sleep(0)  # the last connections are counted
    running.drop_connections()
    for connection in list(running.state.connections):
        connection.transport.abort()
    for task in list(running.state.tasks):
        task.cancel()
    if running.state.tasks:
        await asyncio.wait(running.state.tasks, timeout=WAIT)


def request(method: str = "POST", path: str = "/echo", body: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a plain request."""
    return b"%b %b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        method.encode(), path.encode(), HEAD, extra, len(body), body,
    )  # fmt: skip
