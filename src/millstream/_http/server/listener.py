"""Accepting connections, and shutting them down."""

import asyncio
import socket
import ssl

from millstream._http.server import Endpoints
from millstream._http.server.drain import TICK, readable
from millstream._http.server.forwarded_headers import TrustedProxies
from millstream._http.server.guard import ConnectionGuard, ServerState
from millstream._http.server.protocol import HttpProtocol

BACKLOG = 2048
"""Maximum number of connections that wait to be accepted."""


class SocketListener:
    """The listening sockets of one server, in the running event loop.

    Args:
        table: the endpoints.
        tls: TLS context with the certificate, or `None` for plain HTTP.
        proxies: proxies whose forwarded headers are trusted.
        state: set of open connections.
    """

    def __init__(
        self,
        table: Endpoints,
        *,
        tls: ssl.SSLContext | None = None,
        proxies: TrustedProxies | None = None,
        state: ServerState | None = None,
    ) -> None:
        self._table = table
        self._tls = tls
        self._proxies = proxies
        self._servers: list[asyncio.Server] = []
        self.state = state or ServerState()
        self.guard = ConnectionGuard(self.state, table.limits, asyncio.get_running_loop())

    def make_protocol(self) -> HttpProtocol:
        """Return a protocol for a new connection."""
        return HttpProtocol(self._table, self.state, self.guard, self._proxies)

    async def listen(self, sock: socket.socket) -> asyncio.Server:
        """Accept connections from a bound socket."""
        server = await asyncio.get_running_loop().create_server(
            self.make_protocol,
            sock=sock,
            ssl=self._tls,
            ssl_handshake_timeout=self._table.limits.header_timeout if self._tls else None,
            backlog=BACKLOG,
        )
        self._servers.append(server)
        return server

    async def accept_backlog(self) -> None:
        """Accept established connections from the backlog, because closing the socket would reset them."""
        sockets = [sock for server in self._servers for sock in server.sockets]
        for _ in range(BACKLOG):
            waiting = readable(sockets)
            await asyncio.sleep(0)  # asyncio creates the transport one iteration later
            if not waiting:
                return

    def close(self) -> None:
        """Stop accepting connections."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def shut_down(self, seconds: float) -> None:
        """Close every connection after its pending reply. After `seconds`, cancel the calls that still run."""
        for connection in list(self.state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(seconds):
                while self.state.connections or self.state.tasks:  # noqa: ASYNC110  nothing signals it
                    await asyncio.sleep(TICK)
        except TimeoutError:
            for task in list(self.state.tasks):
                task.cancel()
