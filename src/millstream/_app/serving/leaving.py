"""How connections are let go before a server ends, so that no request falls between two replies.

RFC 9112 §9.6: whoever closes says so first, in the last reply. An idle connection can't hear it;
it's closed when it has been idle for a while, and never while bytes of a request wait to be read.
"""

import select
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

if TYPE_CHECKING:
    from uvicorn.server import ServerState

LINGER: Final = 2.0
"""Seconds that an idle connection may take for one more request, which is answered with ``connection: close``."""
TICK: Final = 0.02
_CLOSE = (b"connection", b"close")


class Leaving(Struct, frozen=True):
    """How much a server that ends waits for its peers to notice; calls have their own time."""

    delay: float = 0.0
    """Seconds in which it's not ready any more and serves as before: load balancers need them to look."""
    linger: float = 0.0
    """Seconds that an idle connection stays open after that."""

    @classmethod
    def stopping(cls, delay: float) -> "Leaving":
        """Of a server that goes for good. Without a load balancer there's nobody to wait for."""
        return cls(delay, min(delay, LINGER))


class Dismissal:
    """The connections of a server that takes no new ones."""

    __slots__ = ("_clock", "_since", "_state", "_told")

    def __init__(self, state: "ServerState", clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._told: set[Any] = set()
        self._since: dict[Any, float] = {}
        """When a connection was first seen waiting for its peer."""

    def announce(self) -> None:
        """From now on each reply says that it's the last one of its connection."""
        connections: set[Any] = {*self._state.connections}
        for connection in connections - self._told:
            self._told.add(connection)
            if hasattr(connection, "announce"):
                connection.announce()
            else:
                self._announce_plainly(getattr(connection, "cycle", None))

    def _announce_plainly(self, cycle: Any) -> None:
        """To uvicorn's own class, which puts the default headers into the replies to later requests."""
        if _CLOSE not in self._state.default_headers:
            self._state.default_headers = [*self._state.default_headers, _CLOSE]
        if cycle is not None and not cycle.response_started:
            cycle.keep_alive = False

    def look(self, linger: float) -> bool:
        """Close whatever has been idle for so long. True as long as it's worth to look again."""
        self.announce()  # to those that had been accepted and not been made
        now, waiting = self._clock(), False
        since = {each: self._since.get(each, now) for each in self._state.connections if _owes(each)}
        self._since = since
        over = [each for each, start in since.items() if now - start >= linger]
        coming = _readable(each.transport for each in over if _is_idle(each))
        for connection in over:
            if _is_idle(connection):
                if connection.transport in coming:
                    waiting = True
                else:
                    connection.transport.close()
        return waiting or len(over) < len(since)

    def cut_off(self) -> None:
        """End what is closed and waits for its peer to close, too, as TLS has it: an idle peer may never."""
        for connection in list(self._state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None and transport.is_closing() and not transport.get_write_buffer_size():
                transport.abort()

    def answering(self) -> bool:
        """Whether some reply isn't out: of a page or a webhook, say, which no count of calls has."""
        return any(_is_answering(each) for each in self._state.connections)


def _is_idle(connection: Any) -> bool:
    if hasattr(connection, "idle"):
        return bool(connection.idle)
    cycle = getattr(connection, "cycle", connection)
    return cycle is None or (cycle is not connection and bool(cycle.response_complete))


def _is_answering(connection: Any) -> bool:
    if connection.transport.is_closing():
        return False
    if hasattr(connection, "answering"):
        return bool(connection.answering)
    cycle = getattr(connection, "cycle", None)  # a WebSocket has none
    # Nothing ends a stream that nobody reads where only uvicorn's class serves.
    return cycle is not None and not (cycle.response_complete or cycle.more_body or connection.flow.write_paused)


def _owes(connection: Any) -> bool:
    """The next move is the peer's: a request, or the rest of one. WebSockets end in their own way."""
    return not connection.transport.is_closing() and (_is_idle(connection) or getattr(connection, "arriving", False))


def _readable(transports: Iterable[Any]) -> set[Any]:
    """Those whose next request has reached the machine, and not yet the program."""
    if not hasattr(select, "poll"):
        return set()
    poll, by_descriptor = select.poll(), dict[int, Any]()
    for transport in transports:
        descriptor = transport.get_extra_info("socket").fileno()
        if descriptor >= 0:
            by_descriptor[descriptor] = transport
            poll.register(descriptor, select.POLLIN)
    return {by_descriptor[descriptor] for descriptor, event in poll.poll(0) if event & select.POLLIN}
