"""The listening sockets of a server, the asyncio protocol of their connections, and graceful shutdown."""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, cast

from msgspec import Struct

from millstream._http.hosts import TrustedProxies
from millstream._http.message import Response, peer_network
from millstream._http.server import Endpoints
from millstream._http.server.connection import (
    DONE,
    EXPECTED,
    HEAD,
    IDLE,
    TOO_MANY_CONNECTIONS,
    Event,
    ServerConnection,
    ServerExchange,
    ServerState,
    Upgrade,
)
from millstream._http.server.guard import ConnectionGuard, peer_of
from millstream._override import override

_MAX_LINGERING = 256
"""Maximum number of connections above the cap that may read their refusal at a time. Others are dropped without one."""


class HttpProtocol(asyncio.Protocol):
    """One connection of a `SocketListener`.

    It executes the events of its `ServerConnection`.
    """

    __slots__ = (
        "__weakref__", "_proxies", "_table", "_writable", "connection", "current", "guard", "peer", "read_paused",
        "state", "transport", "unsent", "unsent_since", "write_paused",
    )  # fmt: skip

    transport: asyncio.Transport
    connection: ServerConnection

    def __init__(
        self, table: Endpoints, state: ServerState, guard: ConnectionGuard, proxies: TrustedProxies | None = None
    ) -> None:
        self._table = table
        self._proxies = proxies
        self.state = state
        self.guard = guard
        # Connection
        self.peer = ""
        self.current: ServerExchange | None = None
        """The call being answered."""
        self.read_paused = False
        self.write_paused = False
        self.unsent = 0
        self.unsent_since = guard.clock
        self._writable: asyncio.Future[None] | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection and reject it if there are too many."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.state.connections.add(self)
        self.peer = peer_of(self.transport)[0]
        scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        proxies = self._proxies if self._proxies is not None and self._proxies.trusts(self.peer) else None
        self.connection = ServerConnection(self._table, self.guard, peer=self.peer, scheme=scheme, proxies=proxies)
        if not self.peer and isinstance(transport.get_extra_info("sockname"), tuple):
            # Over TCP, a connection without a peer has been reset. Its requests would escape every limit.
            self.transport.abort()
        elif not self.guard.admit(self, is_proxy=proxies is not None):
            if len(self.state.connections) > self.guard.limits.max_connections + _MAX_LINGERING:
                self.transport.abort()
            else:
                self.refuse(self.connection.over_cap or TOO_MANY_CONNECTIONS)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """End the current call and remove the connection."""
        self.state.connections.discard(self)
        current = self.current
        self._leave()
        self._wake_writers()
        if current is not None:
            current.connection_lost()
        if exc is None:
            self.transport.close()

    def _leave(self) -> None:
        self.guard.release(self)
        self.guard.forget_unsent(self)
        self.connection.lose()
        self.current = None

    @override
    def data_received(self, data: bytes) -> None:
        """Process bytes and start the request unless another is pending."""
        connection = self.connection
        event = connection.receive(data)
        if event is not None:
            if type(event) is ServerExchange:
                # `_begin`, inline (tests/transports/test_inlined_code.py).
                self.current = event
                event.protocol = self
                task = self.guard.start(event.run(self))
                if not (event.response_complete or event.left_open):
                    event.task = task
                    event.cancel = task.cancel
                    self.state.tasks.add(task)
            else:
                self._carry_out(event)
        if connection.queue or connection.reading == EXPECTED:
            self.proceed()

    def _begin(self, exchange: ServerExchange) -> None:
        """Run a call in its own task, so a cancellation can't affect another call."""
        self.current = exchange
        exchange.protocol = self
        task = self.guard.start(exchange.run(self))
        if not (exchange.response_complete or exchange.left_open):
            # From now on, the call can be canceled, and the server waits for it.
            exchange.task = task
            exchange.cancel = task.cancel
            self.state.tasks.add(task)

    def proceed(self) -> None:
        """Execute due events, then resume reading if nothing is pending."""
        connection = self.connection
        while not self.transport.is_closing() and (event := connection.next_event()) is not None:
            self._carry_out(event)
        if self.transport.is_closing():
            return
        if connection.queue:
            self._pause_reading()
        elif not self.write_paused:
            self._resume_reading()

    def _carry_out(self, event: Event) -> None:
        if isinstance(event, ServerExchange):
            self._begin(event)
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
        self.connection.since = self.guard.clock
        self.transport.write(self.guard.heads.reply(response, keep_alive=False))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._resume_reading()
        else:
            self.transport.close()

    def _upgrade(self, event: Upgrade) -> None:
        """Continue as a WebSocket."""
        from millstream._http.server.websocket import WebSocketProtocol  # noqa: PLC0415  loaded with the first one

        socket = WebSocketProtocol(self.transport, self._table, self.state, self.guard, event.request)
        self.guard.transfer(self, socket)
        self._leave()
        self.state.connections.discard(self)
        self.transport.set_protocol(socket)
        socket.open()
        if event.ahead and not self.transport.is_closing():
            socket.data_received(event.ahead)

    # Flow control

    def _pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    @override
    def pause_writing(self) -> None:
        """Stop reading requests while the client doesn't read its replies."""
        self.write_paused = self.connection.held = True
        self._pause_reading()
        self.guard.count_unsent(self)

    @override
    def resume_writing(self) -> None:
        """Resume after `pause_writing`."""
        self.write_paused = self.connection.held = False
        self.guard.count_unsent(self)
        self._wake_writers()
        self.proceed()

    @property
    def owner(self) -> str:
        """The owner of the current request."""
        return peer_network(self.peer) if self.current is None else self.current.owner

    def count_unsent(self, size: int) -> None:
        """Count a large piece that was just written, until the client has read it."""
        self.guard.count_unsent(self, size)

    async def wait_writable(self) -> None:
        """Wait until the client has caught up or the connection is lost."""
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._writable)

    def _wake_writers(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

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
    closed after it has been idle for a while, and never while unread bytes of a request are waiting.
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
