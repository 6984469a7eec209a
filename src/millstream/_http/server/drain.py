"""Graceful shutdown of connections, so no request is lost.

A server announces a close in its last reply (RFC 9112 §9.6). An idle connection has no such reply, so it's closed after
it has been idle for a while, and never while unread bytes of a request are waiting.
"""

import select
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from millstream._http.server.guard import ConnectionGuard, ServerState

LINGER = 2.0
"""Seconds that an idle connection stays open for one more request, which gets ``connection: close``."""
TICK = 0.02


class DrainTimes(Struct, frozen=True):
    """Time limits for clients and load balancers at shutdown. Calls have their own."""

    delay: float = 0.0
    """Seconds to keep serving after readiness checks begin to fail, so load balancers notice."""
    linger: float = 0.0
    """Seconds that an idle connection stays open after that."""

    @classmethod
    def for_stop(cls, delay: float) -> "DrainTimes":
        """Return the times for a server that isn't replaced. Without `delay`, it doesn't linger."""
        return cls(delay, min(delay, LINGER))


class ConnectionDrainer:
    """Closes the connections of a server that accepts no new ones."""

    def __init__(self, state: "ServerState", guard: "ConnectionGuard", clock: Callable[[], float]) -> None:
        self._state = state
        self._guard = guard
        self._clock = clock
        self._announced: set[Any] = set()
        self._idle_since: dict[Any, float] = {}
        """Time at which a connection was first seen waiting for its client."""

    def announce(self) -> None:
        """Make every reply from now on announce that its connection closes."""
        self._guard.leaving = True
        for connection in self._state.connections - self._announced:
            self._announced.add(connection)
            connection.announce_close()

    def close_idle(self, linger: float) -> bool:
        """Close connections that have been idle for `linger` seconds. Return whether to check again."""
        self.announce()  # Include connections accepted since the last check.
        now, waiting = self._clock(), False
        since = {each: self._idle_since.get(each, now) for each in self._state.connections if _waits_for_client(each)}
        self._idle_since = since
        over = [each for each, start in since.items() if now - start >= linger]
        sockets = {each: each.transport.get_extra_info("socket") for each in over if each.idle}
        unread = readable(sockets.values())
        for connection in over:
            if connection.idle:
                if sockets[connection].fileno() in unread:
                    waiting = True
                else:
                    connection.transport.close()
        return waiting or len(over) < len(since)

    def abort_closed(self) -> None:
        """End closed connections that wait for the client's own close, which may never come over TLS."""
        for connection in list(self._state.connections):
            transport = connection.transport
            if transport.is_closing() and not transport.get_write_buffer_size():
                transport.abort()

    def is_answering(self) -> bool:
        """Return whether a reply is pending, including replies of pages and webhooks, which aren't calls."""
        return any(each.answering and not each.transport.is_closing() for each in self._state.connections)


def _waits_for_client(connection: Any) -> bool:
    return not connection.transport.is_closing() and (connection.idle or connection.arriving)


def readable(sockets: Iterable[Any]) -> set[int]:
    """Return the descriptors of sockets with data to read or connections to accept."""
    if not hasattr(select, "poll"):
        return set()
    poll = select.poll()
    for sock in sockets:
        if (descriptor := sock.fileno()) >= 0:
            poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, event in poll.poll(0) if event & select.POLLIN}
