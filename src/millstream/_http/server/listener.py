"""The listening sockets of a server, the asyncio protocol of their connections, and graceful shutdown."""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from typing import Any, cast

from msgspec import Struct

from millstream._http.hosts import TrustedProxies
from millstream._http.message import Response, peer_network
from millstream._http.server import Endpoints
from millstream._http.server.connection import (
    BODY,
    BODY_TIMEOUT,
    CLOSED,
    DONE,
    EXPECTED,
    FAST_BODY,
    HEAD,
    HEADER_TIMEOUT,
    IDLE,
    NEW,
    Event,
    HttpSocket,
    ServerConnection,
    ServerExchange,
    Upgrade,
)
from millstream._http.server.guard import ConnectionGuard, ServerState, peer_of
from millstream._override import override

_TOO_SLOW = {HEAD: HEADER_TIMEOUT, BODY: BODY_TIMEOUT, FAST_BODY: BODY_TIMEOUT}
"""Refusals for slow clients, by the reading state of the connection."""
_LINGER = 2.0
"""Seconds that a rejected client has to read the refusal."""
_MAX_SPARES = 16
"""Connections above the cap that are reserved for health probes, so a full server doesn't look dead."""
_MAX_LINGERING = 256
"""Maximum number of connections above the cap that may read their refusal at a time. Others are dropped without one."""


_MAX_UNSENT = 256 * 1024
"""Bytes of a connection that the kernel takes before it has sent earlier ones. Without this, Linux takes 4 MB from each
client that doesn't read, which `max_outgoing_bytes` doesn't count, and which took much longer than sending does.
"""


def set_options(listener: socket.socket, seconds: float) -> None:
    """Bound unsent bytes, and end connections whose peer acknowledges nothing for some seconds.

    By default, kernels wait for 15 minutes. Accepted sockets inherit these options (tcp(7)); systems without one ignore
    it.
    """
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    whole = max(1, min(round(seconds), 3600))
    options = {
        "TCP_KEEPIDLE": whole, "TCP_KEEPALIVE": whole, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 1000 * whole, "TCP_NOTSENT_LOWAT": _MAX_UNSENT,
    }  # fmt: skip
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if (option := getattr(socket, name, None)) is not None:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)


class HttpProtocol(HttpSocket):
    """One connection of a `SocketListener`.

    It executes the events of its `ServerConnection`.
    """

    def __init__(
        self, table: Endpoints, state: ServerState, guard: ConnectionGuard, proxies: TrustedProxies | None = None
    ) -> None:
        super().__init__(table, state, guard)
        self._proxies = proxies
        self.current = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and reject it if there are too many. A few above the cap may send a health probe."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.peer = peer_of(self.transport)
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        proxies = self._proxies if self._proxies is not None and self._proxies.trusts(self.peer) else None
        self.connection = ServerConnection(self.table, self.guard, peer=self.peer, scheme=scheme, proxies=proxies)
        over_cap = self.guard.admit(self, is_proxy=proxies is not None)
        self.connection.since = self.guard.clock
        if not self.peer and isinstance(transport.get_extra_info("sockname"), tuple):
            # Over TCP, a connection without a peer has been reset. Its requests would escape every limit.
            self.transport.abort()
        elif over_cap is not None:
            self.connection.over_cap, self.connection.fast = over_cap, None
            if len(self.guard.spares) < _MAX_SPARES:
                self.guard.spares.add(self)
            elif len(self.state.connections) > self.guard.limits.max_connections + _MAX_LINGERING:
                self.transport.abort()
            else:
                self.refuse(over_cap)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """End the current call and remove the connection."""
        current = self.current
        self._leave()
        self.room.set()
        if current is not None:
            current.connection_lost()
        if exc is None:
            self.transport.close()

    def _leave(self) -> None:
        self.guard.release(self)
        self.connection.lose()
        self.current = None

    @override
    def data_received(self, data: bytes) -> None:
        """Process bytes and start the request unless another is pending."""
        connection = self.connection
        event = connection.receive(data)
        if event is not None:
            self._carry_out(event)
        if connection.queue or connection.reading == EXPECTED:
            self.proceed()

    @override
    def proceed(self) -> None:
        """Execute due events, then resume reading if nothing is pending."""
        connection = self.connection
        while not self.transport.is_closing() and (event := connection.next_event()) is not None:
            self._carry_out(event)
        if self.transport.is_closing():
            return
        if connection.queue:
            self.pause_reading()
        elif self.room.is_set():
            self.resume_reading()

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, ServerExchange):
            # A call runs in its own task, so a cancellation can't affect another call.
            self.current = event
            event.protocol = self
            task = self.guard.start(event.run(self))
            if not (event.response_complete or event.left_open):
                # From now on, the call can be canceled, and the server waits for it.
                event.task = task
                event.cancel = task.cancel
                self.state.tasks.add(task)
        elif isinstance(event, bytes):
            self.transport.write(event)
        elif isinstance(event, Response):
            self._close_with(event)
        else:
            self._upgrade(event)

    def refuse(self, response: Response) -> None:
        """Send a refusal after pending replies and close the connection."""
        self.connection.refuse(response)
        self.proceed()

    def _close_with(self, response: Response) -> None:
        """Write the last bytes, then keep reading briefly: closing with unread input would discard them."""
        self.guard.spares.discard(self)
        self.connection.since = self.guard.clock
        self.transport.write(self.guard.heads.reply(response, keep_alive=False))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.resume_reading()
        else:
            self.transport.close()

    def _upgrade(self, event: Upgrade) -> None:
        """Continue as a WebSocket."""
        from millstream._http.server.websocket import WebSocketProtocol  # noqa: PLC0415  loaded with the first one

        socket = WebSocketProtocol(self, event.request)
        self.guard.transfer(self, socket)
        self._leave()
        self.transport.set_protocol(socket)
        socket.open()
        if event.ahead and not self.transport.is_closing():
            socket.data_received(event.ahead)

    # Flow control

    @override
    def pause_writing(self) -> None:
        """Stop reading requests while the client doesn't read its replies."""
        self.connection.held = True
        super().pause_writing()

    @override
    def resume_writing(self) -> None:
        """Resume after `pause_writing`."""
        self.connection.held = False
        super().resume_writing()

    @property
    @override
    def owner(self) -> str:
        """The owner of the current request."""
        return peer_network(self.peer) if self.current is None else self.current.owner

    @override
    def close_if_late(self, now: float) -> bool:
        connection, limits = self.connection, self.guard.limits
        if self.read_paused:
            connection.since = now
        closed, reading, patience = connection.replying == CLOSED, connection.reading, inf
        if closed:
            patience = _LINGER
        elif reading == HEAD:
            patience = limits.header_timeout - self.guard.early
        elif reading in _TOO_SLOW:
            patience = limits.body_timeout - self.guard.early
        elif reading <= IDLE:
            patience = limits.header_timeout if reading == NEW else limits.keep_alive
        if now - connection.since <= (min(patience, _LINGER) if connection.over_cap else patience):
            return False
        if reading in _TOO_SLOW:
            self.refuse(_TOO_SLOW[reading])
        elif connection.busy:
            return False
        elif closed or self.transport.is_closing():
            # Over TLS, a close waits for the client's close_notify, which may never arrive.
            self.transport.abort()
        else:
            self.transport.close()
        return True

    # The end of the server

    @property
    def idle(self) -> bool:
        """Whether no reply is pending and no byte of a request has arrived."""
        return self.connection.reading <= IDLE and not self.connection.busy

    @property
    def arriving(self) -> bool:
        """Whether a request has begun to arrive and no reply is pending."""
        return HEAD <= self.connection.reading < DONE and not self.connection.busy

    @property
    def answering(self) -> bool:
        """Whether a reply is pending."""
        return self.connection.busy

    def announce_close(self) -> None:
        """Make the next reply announce the close, unless a pending reply can."""
        self.connection.announce_close()

    def shutdown(self) -> None:
        """Close now, or after the last pending reply. End the stream being written."""
        connection = self.connection
        if self.transport.is_closing():
            return  # Over TLS, it waits for the client; a second close() would raise an error for its callers.
        if (connection.reading == DONE and not connection.busy) or not connection.close_after_newest():
            self.transport.close()
        if self.current is not None and self.current.sink is not None:
            self.current.sink.close()


BACKLOG = 2048
"""Maximum number of pending connections."""


class SocketListener:
    """The listening sockets of one server, in the running event loop.

    Args:
        table: The endpoints.
        tls: TLS context with the certificate, or `None` for plain HTTP.
        proxies: Proxies whose forwarded headers are trusted.
        state: Set of open connections.
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
        set_options(sock, self._table.limits.write_timeout)
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
        """Close every connection after its pending reply. After `seconds`, cancel the calls that are still running."""
        for connection in list(self.state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(seconds):
                while self.state.connections or self.state.tasks:  # noqa: ASYNC110  nothing signals it
                    await asyncio.sleep(TICK)
        except TimeoutError:
            for task in list(self.state.tasks):
                task.cancel()


TICK = 0.02


class ConnectionDrainer(Struct, eq=False):
    """Closes a stopping server's open connections, without losing a request.

    The server announces the close in its last reply (RFC 9112 §9.6). An idle connection has no such reply, so it's
    closed after it has been idle for a while, and not while unread bytes of a request are waiting (unknown on Windows).
    """

    _state: ServerState
    _guard: ConnectionGuard
    _clock: Callable[[], float]
    _announced: set[Any] = set()
    _idle_since: dict[Any, float] = {}
    """Time at which a connection was first seen waiting for its client."""

    def announce(self) -> None:
        """Make every later reply announce that the connection closes."""
        self._guard.leaving = True
        for connection in self._state.connections - self._announced:
            self._announced.add(connection)
            connection.announce_close()

    def close_idle(self, linger: float) -> bool:
        """Close connections that have been idle for `linger` seconds. Return whether to check again."""
        self.announce()  # Include connections accepted since the last check.
        now, waiting = self._clock(), False
        since = self._idle_since = {
            each: self._idle_since.get(each, now)
            for each in self._state.connections
            if not each.transport.is_closing() and (each.idle or each.arriving)
        }
        over = [each for each, start in since.items() if now - start >= linger]
        sockets = {each: each.transport.get_extra_info("socket") for each in over if each.idle}
        unread = readable(sockets.values())
        for connection, sock in sockets.items():
            if sock.fileno() in unread:
                waiting = True
            else:
                connection.transport.close()
        return waiting or len(over) < len(since)

    def abort_closed(self) -> None:
        """Drop closed connections whose client hasn't closed its side. Over TLS, the client may never do so."""
        for connection in list(self._state.connections):
            transport = connection.transport
            if transport.is_closing() and not transport.get_write_buffer_size():
                transport.abort()

    def is_answering(self) -> bool:
        """Return whether a reply is pending, including replies of pages and webhooks, which aren't calls."""
        return any(each.answering and not each.transport.is_closing() for each in self._state.connections)


def readable(sockets: Iterable[Any]) -> set[int]:
    """Return the descriptors of sockets with data to read or connections to accept."""
    if not hasattr(select, "poll"):
        return set()
    poll = select.poll()
    for sock in sockets:
        if (descriptor := sock.fileno()) >= 0:
            poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, event in poll.poll(0) if event & select.POLLIN}
