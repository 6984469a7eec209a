"""Server-wide limits: timeouts, checked in one periodic sweep, and caps on connections and unsent bytes.

One timer checks all connections about once a second, or more often if a limit is shorter. A connection only records the
guard's coarse clock when its state changes. The timeout depends on what the server waits for: the rest of the headers,
the rest of a body, the next request, or the client reading its replies.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from msgspec import Struct

from millstream._http.hosts import is_loopback
from millstream._http.message import JSON_HEAD, LARGE, CompactEvent, HttpLimits, Response, peer_network, refusal
from millstream._http.server import Endpoints
from millstream._override import override
from millstream._protocol.principal import Share
from millstream._troubles import LogOnce

_CHECKS_PER_YIELD = 256
"""Connections that a sweep checks before it yields to the event loop."""
_CLOSES_PER_YIELD = 4
"""Connections that a sweep closes before it yields."""
_MAX_ITERATIONS = 500
"""Maximum event loop iterations per sweep, so it finishes before the next one begins."""


def peer_of(transport: asyncio.Transport) -> str:
    """Return the address of the client. It's empty on a Unix socket, or if the client has reset the connection.

    The event loop stored the address when it accepted the connection, so this needs no system call.
    """
    try:
        name: Any = transport.get_extra_info("peername")
    except OSError:
        name = None
    return "" if isinstance(name, str | bytes | None) else str(name[0])


PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
CLOSE = b"connection: close\r\n"
_BODILESS = frozenset({204, 304})


class ReplyHeads:
    """Reply heads with status line and date, built once per status and second."""

    def __init__(self) -> None:
        self._date = b""
        self._heads: dict[int, bytes] = {}
        self.usual = b""
        """The head of a 200 with JSON, up to its length."""
        self.tick()

    def tick(self) -> None:
        """Update the date of later replies."""
        date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        if date != self._date:
            self._date = date
            self._heads.clear()
            self.usual = self.make(200) + JSON_HEAD + b"content-length: "

    def make(self, status: int) -> bytes:
        """Return the status line and the `date` header for a status. The reply's own headers follow."""
        head = self._heads.get(status)
        if head is None:
            head = self._heads[status] = b"HTTP/1.1 %d %b\r\n%b" % (status, PHRASES.get(status, b""), self._date)
        return head

    def reply(self, response: Response, cors: bytes = b"", *, keep_alive: bool, bodiless: bool = False) -> bytes:
        """Return a complete reply. `bodiless` is for HEAD."""
        body = response.body
        return b"%b%b%b%b%b\r\n%b" % (
            self.make(response.status),
            response.head,
            cors,
            b"" if response.status in _BODILESS or (bodiless and not body) else b"content-length: %d\r\n" % len(body),
            b"" if keep_alive else CLOSE,
            b"" if bodiless else body,
        )


TOO_MANY_CONNECTIONS = refusal(503, "The server has too many connections. Retry later.", retry_after="1")
TOO_MANY_FROM_ADDRESS = refusal(
    503, "There are too many connections from your address. Close some, then retry.", retry_after="1"
)


class ServerState(Struct, eq=False):
    """State, other than the guard, that a server's connections share."""

    cut: int = 0
    """Number of connections closed because of unread replies."""
    connections: set[Any] = set()
    """All open connections, including WebSockets."""
    tasks: set[asyncio.Task[None]] = set()
    """Tasks of suspended calls and of WebSockets."""


class ServerSocket(asyncio.Protocol):
    """The socket of one connection, HTTP or WebSocket, with its flow control.

    The server reads nothing while the client leaves too much unread.
    """

    transport: asyncio.Transport

    def __init__(self, table: Endpoints, state: ServerState, guard: "ConnectionGuard") -> None:
        self.table = table
        self.state = state
        self.guard = guard
        self.peer = ""
        self.read_paused = False
        """Whether the server has stopped reading, so the client can't continue."""
        self.room = CompactEvent()
        """Set while the transport has space."""
        self.room.set()
        self.unsent = 0
        """Bytes in the write buffer at the last check."""
        self.unsent_since = guard.clock
        """Time at which the write buffer last shrank."""

    @property
    def owner(self) -> str:
        """The caller (see `HttpRequest.owner`)."""
        raise NotImplementedError

    def proceed(self) -> None:
        """Process received data and resume reading, unless something is pending."""
        raise NotImplementedError

    def close_if_late(self, now: float) -> bool:
        """End the connection if its client has exceeded a time limit. Called about once a second."""
        raise NotImplementedError

    def count_unsent(self, size: int) -> None:
        """Count a large piece that was just written, until the client has read it."""
        self.guard.count_unsent(self, size)

    def pause_reading(self) -> None:
        """Stop reading until `resume_reading`."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume after `pause_reading`."""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    @override
    def pause_writing(self) -> None:
        self.room.clear()
        self.pause_reading()
        self.guard.count_unsent(self)

    @override
    def resume_writing(self) -> None:
        self.guard.count_unsent(self)
        self.room.set()
        self.proceed()


class ConnectionGuard:
    """The guard of one running server."""

    def __init__(self, state: ServerState, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self._interval = max(0.02, min(1.0, shortest / 4))
        self.early = 1.5 * self._interval
        """Seconds by which a request may end early: the last sweep before its limit ends it."""
        self._loop = loop
        self._state = state
        self._timer: asyncio.TimerHandle | None = None
        self.spares: set[ServerSocket] = set()
        """Connections above the cap that may still send a request."""
        self.connections = Share(limits.max_connections, each=limits.max_connections_per_address or None)
        """The connections that may send requests, by address."""
        self._owners: dict[ServerSocket, str] = {}
        """Connection -> the address whose share it uses, or empty for a proxy or this machine."""
        self._unsent_by_connection: dict[ServerSocket, tuple[str, int, int]] = {}
        """For each connection whose client can't keep up, longest stalled first: the owner, the counted bytes, and the
        length of a large piece that isn't sent completely."""
        self.clock = loop.time()
        self.heads = ReplyHeads()
        self.unfinished = Share(limits.max_incoming_bytes)
        self.unfinished.fit(limits.max_body)
        """The budget for unfinished bodies and WebSocket messages that come in several pieces."""
        self.unsent = Share(limits.max_outgoing_bytes)
        self._cuts = LogOnce(
            None,  # it's the clients' fault
            "Connections are closed, because clients leave replies unread",
            "",
        )
        """The budget for replies that clients haven't read."""
        self.leaving = False
        """Whether the server is stopping. Each connection gets at most one more reply, which announces the close."""
        self.start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = partial(
            cast("Any", asyncio.Task), loop=loop, **({"eager_start": True} if sys.version_info >= (3, 12) else {})
        )
        """Function that starts a call in a task, eagerly on Python 3.12 and newer."""

    def admit(self, connection: ServerSocket, *, is_proxy: bool = False) -> Response | None:
        """Watch a new connection. Return the refusal if there are too many.

        By default, an address can have half of the connections, except for proxies and this machine.
        """
        if self._timer is None:
            self.clock = self._loop.time()
            self.heads.tick()
            self._timer = self._loop.call_later(self._interval, self._sweep)
        connection.unsent_since = self.clock
        self._state.connections.add(connection)
        limits, peer = self.limits, connection.peer
        is_exempt = not limits.max_connections_per_address and (is_proxy or is_loopback(peer))
        owner = "" if is_exempt else peer_network(peer)
        if len(self._state.connections) > limits.max_connections:
            return TOO_MANY_CONNECTIONS
        if not self.connections.take(owner):
            return TOO_MANY_FROM_ADDRESS
        self._owners[connection] = owner
        return None

    def release(self, connection: ServerSocket) -> None:
        """Stop watching a connection that is lost."""
        self._state.connections.discard(connection)
        self.spares.discard(connection)
        self.forget_unsent(connection)
        if connection in self._owners:
            self.connections.leave(self._owners.pop(connection))

    def transfer(self, connection: ServerSocket, websocket: ServerSocket) -> None:
        """Watch a connection as the WebSocket that it continues as."""
        self._state.connections.add(websocket)
        if connection in self._owners:
            self._owners[websocket] = self._owners.pop(connection)

    # Unsent bytes

    def count_unsent(self, connection: ServerSocket, written: int = 0) -> None:
        """Count the bytes that a client hasn't read. Beyond its owner's share, or the maximum, close a connection.

        Args:
            written: Length of a large piece that was just written. It stays in memory until its last byte is sent.
        """
        owner, held, piece = self._unsent_by_connection.get(connection) or (connection.owner, 0, 0)
        buffered, piece, share = connection.transport.get_write_buffer_size(), max(piece, written), self.unsent
        if not buffered or (buffered <= LARGE and not piece):
            self.forget_unsent(connection)
            return
        size = min(max(buffered, piece), share.each)
        share.leave(owner, held)
        self._unsent_by_connection[connection] = owner, 0, piece
        if not share.has_room(owner, size):
            for each in [each for each in self._unsent_by_connection if not each.transport.get_write_buffer_size()]:
                self.forget_unsent(each)
        while connection in self._unsent_by_connection and not share.has_room(owner, size):
            self._cut(owner if share.count(owner) + size > share.each else "")
        if connection in self._unsent_by_connection:
            share.take(owner, size)
            self._unsent_by_connection[connection] = owner, size, piece

    def _cut(self, owner: str) -> None:
        """Close the longest-stalled connection of an owner, or of the owner that holds the most."""
        unsent = self._unsent_by_connection
        owner = owner or max((each for each, _, _ in unsent.values()), key=self.unsent.count)
        slowest = next(each for each, (its, _, _) in unsent.items() if its == owner)
        self._cuts.fail(
            f"{owner or 'a local client'} left {self.unsent.count(owner)} bytes of replies unread, out of "
            f"{self.unsent.used} in total. max_outgoing_bytes is {self.unsent.maximum}, and one caller may use half."
        )
        self._state.cut += 1
        self.forget_unsent(slowest)
        slowest.transport.abort()

    def forget_unsent(self, connection: ServerSocket) -> None:
        """Stop counting a connection whose client has caught up, or that is lost."""
        owner, held, _ = self._unsent_by_connection.pop(connection, ("", 0, 0))
        self.unsent.leave(owner, held)

    # Time

    def _sweep(self) -> None:
        self.clock = now = self._loop.time()
        self.heads.tick()
        everybody = list(self._state.connections)
        self._timer = self._loop.call_later(self._interval, self._sweep) if everybody else None
        for each in list(self._unsent_by_connection):
            if each in self._unsent_by_connection:
                self.count_unsent(each)
        ends = max(_CLOSES_PER_YIELD, len(everybody) // _MAX_ITERATIONS)
        self._check_batch(everybody, now, max(1, _CHECKS_PER_YIELD // ends))

    def _check_batch(self, left: list[ServerSocket], now: float, end: int) -> None:
        """Check some of these connections, and the rest in the next iterations of the event loop.

        Closing a connection is treated as `end` checks.
        """
        room = _CHECKS_PER_YIELD
        try:
            while left and room > 0:
                ended = (one := left.pop()) in self._state.connections and (
                    self._abort_if_stalled(one, now) or (not one.unsent and one.close_if_late(now))
                )
                room -= end if ended else 1
        finally:
            if left:
                self._loop.call_soon(self._check_batch, left, now, end)

    def _abort_if_stalled(self, connection: ServerSocket, now: float) -> bool:
        """Close a connection whose client hasn't read for too long."""
        unsent = connection.transport.get_write_buffer_size()
        if unsent == 0 or unsent < connection.unsent:
            connection.unsent_since = now
        connection.unsent = unsent
        if late := now - connection.unsent_since > self.limits.write_timeout:
            connection.transport.abort()
        return late
