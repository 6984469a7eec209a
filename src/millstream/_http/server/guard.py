"""Server-wide limits: timeouts, checked in one periodic sweep, and caps on connections and unsent bytes.

One timer checks all connections about once a second, or more often if a limit is shorter. A connection only records the
guard's coarse clock when its state changes. The timeout depends on what the server waits for: the rest of the headers,
the rest of a body, the next request, or the client reading its replies.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from math import inf
from typing import Any, Protocol, cast

from millstream._http.hosts import is_loopback
from millstream._http.message import LARGE, HttpLimits, peer_network
from millstream._http.server.connection import (
    BODY,
    BODY_TIMEOUT,
    CLOSED,
    DONE,
    FAST_BODY,
    HEAD,
    HEADER_TIMEOUT,
    IDLE,
    NEW,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_FROM_ADDRESS,
    ConnectionSocket,
    ReplyHeads,
    ServerState,
)
from millstream._protocol.principal import Share

logger = logging.getLogger("millstream")

_TOO_SLOW = {HEAD: HEADER_TIMEOUT, BODY: BODY_TIMEOUT, FAST_BODY: BODY_TIMEOUT}
"""Refusals for slow clients, by the reading state of the connection."""
_LINGER = 2.0
"""Seconds that a rejected client has to read the refusal."""
_MAX_SPARES = 16
"""Connections above the cap that are reserved for health probes, so a full server doesn't look dead."""
_CHECKS_PER_YIELD = 256
"""Connections that a sweep checks before it yields to the event loop."""
_CLOSES_PER_YIELD = 4
"""Connections that a sweep closes before it yields."""
_MAX_ITERATIONS = 500
"""Maximum event loop iterations per sweep, so it finishes before the next one begins."""


def peer_of(transport: asyncio.Transport) -> tuple[str, int]:
    """Return the address and port of the client. They're empty on a Unix socket, or if the client has reset the
    connection.

    The event loop stored them when it accepted the connection, so this needs no system call.
    """
    try:
        name: Any = transport.get_extra_info("peername")
    except OSError:
        name = None
    return ("", 0) if isinstance(name, str | bytes | None) else (str(name[0]), int(name[1]))


class ConnectionWriter(Protocol):
    """The interface of HTTP and WebSocket connections for counting unsent bytes."""

    transport: asyncio.Transport

    @property
    def owner(self) -> str:
        """The caller (see `HttpRequest.owner`)."""
        ...


class ConnectionGuard:
    """The guard of one running server."""

    def __init__(self, state: ServerState, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self._interval = max(0.02, min(1.0, shortest / 4))
        early = 1.5 * self._interval  # the last sweep before the limit ends the connection
        self._patience = {
            NEW: limits.header_timeout,
            IDLE: limits.keep_alive,
            HEAD: limits.header_timeout - early,
            BODY: limits.body_timeout - early,
            FAST_BODY: limits.body_timeout - early,
        }
        """Seconds that a client may keep the server waiting, by the reading state of the connection."""
        self._loop = loop
        self._state = state
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[ConnectionSocket] = set()
        self._spares: set[ConnectionSocket] = set()
        self.connections = Share(limits.max_connections, each=limits.max_connections_per_address or None)
        """The connections that may send requests, by address."""
        self._owners: dict[object, str] = {}
        """Connection -> the address whose share it uses, or empty for a proxy or this machine."""
        self._unsent_by_connection: dict[ConnectionWriter, tuple[str, int, int]] = {}
        """For each connection whose client can't keep up, longest stalled first: the owner, the counted bytes, and the
        length of a large piece that isn't sent completely."""
        self.clock = loop.time()
        self.heads = ReplyHeads()
        self.unfinished = Share(limits.max_incoming_bytes)
        self.unfinished.fit(limits.max_body)
        """The budget for unfinished bodies and WebSocket messages that come in several pieces."""
        self.unsent = Share(limits.max_outgoing_bytes)
        """The budget for replies that clients haven't read."""
        self.leaving = False
        """Whether the server is stopping. Each connection gets at most one more reply, which announces the close."""
        self.start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = partial(
            cast("Any", asyncio.Task), loop=loop, **({"eager_start": True} if sys.version_info >= (3, 12) else {})
        )
        """Function that starts a call in a task, eagerly on Python 3.12 and newer."""

    def admit(self, connection: ConnectionSocket, *, is_proxy: bool = False) -> bool:
        """Watch a new connection, which is already in the server's set. Return False if there are too many.

        An address can have half of the connections, except for proxies and this machine. A few connections above the
        cap are `over_cap`: they get little time and one reply, which is a refusal unless they send a health probe.
        """
        if self._timer is None:
            self.clock = self._loop.time()
            self.heads.tick()
            self._timer = self._loop.call_later(self._interval, self._sweep)
        connection.connection.since = connection.unsent_since = self.clock
        self._connections.add(connection)
        limits, peer = self.limits, connection.peer
        is_exempt = not limits.max_connections_per_address and (is_proxy or is_loopback(peer))
        owner = "" if is_exempt else peer_network(peer)
        if len(self._state.connections) > limits.max_connections:
            connection.connection.over_cap = TOO_MANY_CONNECTIONS
        elif not self.connections.take(owner):
            connection.connection.over_cap = TOO_MANY_FROM_ADDRESS
        else:
            self._owners[connection] = owner
            return True
        connection.connection.fast = None
        self._spares = {each for each in self._spares if each.connection.reading != DONE}
        if len(self._spares) >= _MAX_SPARES:
            return False
        self._spares.add(connection)
        return True

    def release(self, connection: ConnectionSocket) -> None:
        """Stop watching a connection that is lost."""
        self._connections.discard(connection)
        self._spares.discard(connection)
        self.leave_share(connection)

    def leave_share(self, connection: object) -> None:
        """Stop counting a connection, which can be a WebSocket."""
        if connection in self._owners:
            self.connections.leave(self._owners.pop(connection))

    def transfer(self, connection: ConnectionSocket, websocket: object) -> None:
        """Count a connection as the WebSocket that it continues as."""
        if connection in self._owners:
            self._owners[websocket] = self._owners.pop(connection)

    # Unsent bytes

    def count_unsent(self, connection: ConnectionWriter, written: int = 0) -> None:
        """Count the bytes that a client hasn't read. Beyond its owner's share, or the maximum, close a connection.

        Args:
            connection: The connection.
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
        logger.warning(
            "Closed a connection from %s, which left %d bytes of replies unread, out of %d in total. "
            "max_outgoing_bytes is %d, and one caller may use half of it.",
            owner or "a local client", self.unsent.count(owner), self.unsent.used, self.unsent.maximum,
        )  # fmt: skip
        self._state.cut += 1
        self.forget_unsent(slowest)
        slowest.transport.abort()

    def forget_unsent(self, connection: ConnectionWriter) -> None:
        """Stop counting a connection whose client has caught up, or that is lost."""
        owner, held, _ = self._unsent_by_connection.pop(connection, ("", 0, 0))
        self.unsent.leave(owner, held)

    # Time

    def _sweep(self) -> None:
        self.clock = now = self._loop.time()
        self.heads.tick()
        there = self._state.connections or self._connections
        self._timer = self._loop.call_later(self._interval, self._sweep) if there else None
        for each in list(self._unsent_by_connection):
            if each in self._unsent_by_connection:
                self.count_unsent(each)
        everybody = list(self._connections)
        ends = max(_CLOSES_PER_YIELD, len(everybody) // _MAX_ITERATIONS)
        self._check_batch(everybody, now, max(1, _CHECKS_PER_YIELD // ends))

    def _check_batch(self, left: list[ConnectionSocket], now: float, end: int) -> None:
        """Check some of these connections, and the rest in the next iterations of the event loop.

        Closing a connection is treated as `end` checks.
        """
        room = _CHECKS_PER_YIELD
        try:
            while left and room > 0:
                ended = (one := left.pop()) in self._connections and (
                    self._abort_if_stalled(one, now) or self._close_if_late(one, now)
                )
                room -= end if ended else 1
        finally:
            if left:
                self._loop.call_soon(self._check_batch, left, now, end)

    def _abort_if_stalled(self, connection: ConnectionSocket, now: float) -> bool:
        """Close a connection whose client hasn't read for too long."""
        unsent = connection.transport.get_write_buffer_size()
        if unsent == 0 or unsent < connection.unsent:
            connection.unsent_since = now
        connection.unsent = unsent
        if late := now - connection.unsent_since > self.limits.write_timeout:
            connection.transport.abort()
        return late

    def _close_if_late(self, guarded: ConnectionSocket, now: float) -> bool:
        """Close a connection that exceeded its timeout."""
        if guarded.unsent:
            return False
        connection = guarded.connection
        if guarded.read_paused:
            connection.since = now
        closed = connection.replying == CLOSED
        patience = _LINGER if closed else self._patience.get(connection.reading, inf)
        if now - connection.since <= (min(patience, _LINGER) if connection.over_cap else patience):
            return False
        if connection.reading in _TOO_SLOW:
            guarded.refuse(_TOO_SLOW[connection.reading])
        elif connection.busy:
            return False
        elif closed or guarded.transport.is_closing():
            # Over TLS, a close waits for the client's close_notify, which may never arrive.
            guarded.transport.abort()
        else:
            guarded.transport.close()
        return True
