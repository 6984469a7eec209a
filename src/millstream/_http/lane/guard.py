"""Limits that belong to a server and not to one connection: the sweep for every timeout, and who may connect.

One timer looks at all connections about once a second (more often when a limit is shorter); a connection only stamps
the guard's coarse clock when its state changes. A connection is judged by what it is waiting for: the rest of its
headers, the rest of a body, the next request, or the peer's reading.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from math import inf
from typing import Any, Protocol, cast

from uvicorn.server import ServerState

from millstream._http.budget import ByteBudget
from millstream._http.lane.reply import BODY_TIMEOUT, HEADER_TIMEOUT, Heads
from millstream._http.lane.standby import Starter
from millstream._http.lane.states import ASGI_BODY, BODY, CLOSED, HEAD, IDLE, NEW, REFUSED, USUAL_BODY
from millstream._http.limits import HttpLimits
from millstream._http.message import Response, neighborhood

_EAGER = sys.version_info >= (3, 12)
_TOO_SLOW = {HEAD: HEADER_TIMEOUT, ASGI_BODY: BODY_TIMEOUT, BODY: BODY_TIMEOUT, USUAL_BODY: BODY_TIMEOUT}
"""How a peer is refused that keeps us waiting. In the other states it is not waited for, or asks for nothing."""
_LINGER = 2.0
"""How long a refused peer may read its refusal."""
_SPARES = 16
"""Connections above the cap that may ask how the server is: whoever probes a full server must not take it for dead."""
_AT_ONCE = 256
"""Connections that a sweep looks at before others have a turn."""
_ENDS_AT_ONCE = 4
"""Connections that it ends before others have a turn: a crowd that is sent away holds up nobody."""
_TURNS = 500
"""In so many turns it ends everybody, or a larger crowd would still be there when the next sweep begins."""
_LINGERING = 256
"""Connections above the cap that may read their refusal at a time; more are dropped without one."""


class Guarded(Protocol):
    """What the guard sees of a connection."""

    transport: asyncio.Transport
    peer: str
    phase: int
    """One of `states`."""
    since: float
    """When that began, by the guard's clock."""
    unsent: int
    """Bytes in the write buffer at the last look."""
    unsent_since: float
    """Since when the write buffer has not become smaller."""
    over_cap: bool
    """Above the cap, and there only to ask how the server is."""

    @property
    def busy(self) -> bool:
        """A call runs, so the peer owes nothing."""
        ...

    @property
    def held(self) -> bool:
        """We have stopped reading, so the peer cannot go on."""
        ...

    def refuse(self, response: Response) -> None:
        """Answer and close."""


class Guard:
    """The guard of one running server."""

    __slots__ = (
        "_connections", "_counts", "_interval", "_loop", "_patience", "_spares", "_starter", "_state", "_timer",
        "clock", "heads", "leaving", "limits", "start", "unfinished",
    )  # fmt: skip

    def __init__(self, state: ServerState, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> None:
        # configuration
        self.limits = limits
        shortest = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, limits.keep_alive)
        self._interval = max(0.02, min(1.0, shortest / 4))
        early = (
            1.5 * self._interval
        )  # the last sweep that is due before the limit, or else one that comes late, ends it
        self._patience = {
            NEW: limits.header_timeout,
            IDLE: limits.keep_alive,
            HEAD: limits.header_timeout - early,
            ASGI_BODY: limits.body_timeout - early,
            BODY: limits.body_timeout - early,
            USUAL_BODY: limits.body_timeout - early,
            CLOSED: _LINGER,
        }
        """How long a peer may keep us waiting in each state. The others wait for us."""
        # process
        self._loop = loop
        self._state = state
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[Guarded] = set()
        self._spares: set[Guarded] = set()
        self._counts: Counter[str] = Counter()
        self.clock = loop.time()
        self.heads = Heads(state)
        self.unfinished = ByteBudget(limits.max_unfinished, limits.max_body)
        """For all bodies and WebSocket messages that have begun and not ended, if they came in more than one piece."""
        self.leaving = False
        """The server ends soon: each connection gets one more reply at most, which says that it's the last."""
        self._starter = None if _EAGER else Starter(loop)
        self.start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None] | None] = (
            partial(cast("Any", asyncio.Task), loop=loop, eager_start=True)
            if self._starter is None
            else self._starter.start
        )
        """Start a call, as a coroutine, at once where that can be. It gives the task that goes on with it, if any."""

    def admit(self, connection: Guarded) -> bool:
        """Watch a new connection (already in the server's set); False when there are too many.

        A few above the cap are `over_cap`: they have little time and get one answer, a refusal unless they probe.
        """
        if self._timer is None:
            self.clock = self._loop.time()
            self._timer = self._loop.call_later(self._interval, self._sweep)
        connection.since = connection.unsent_since = self.clock
        self._connections.add(connection)
        limits, peer = self.limits, connection.peer
        connection.over_cap = len(self._state.connections) > limits.max_connections
        if limits.max_connections_per_address and peer:
            self._counts[near := neighborhood(peer)] += 1
            connection.over_cap |= self._counts[near] > limits.max_connections_per_address
        if not connection.over_cap:
            return True
        self._spares = {each for each in self._spares if each.phase < REFUSED}
        if len(self._spares) >= _SPARES:
            return False
        self._spares.add(connection)
        return True

    @property
    def overrun(self) -> bool:
        """Too many even to tell them so."""
        return len(self._state.connections) > self.limits.max_connections + _LINGERING

    def release(self, connection: Guarded) -> None:
        """Stop watching a connection that is over, or that another protocol goes on with."""
        self._connections.discard(connection)
        self._spares.discard(connection)
        if self._starter is not None and not self._connections:
            self._starter.rest()
        there = cast("Collection[object]", self._state.connections)
        # What another protocol goes on with is still there, and counts; the next sweep sees when it isn't any more.
        if connection not in there and (near := neighborhood(connection.peer)) in self._counts:
            self._counts[near] -= 1

    def _sweep(self) -> None:
        self.clock = now = self._loop.time()
        there = self._state.connections or self._connections
        self._timer = self._loop.call_later(self._interval, self._sweep) if there else None
        everybody = list(self._connections)
        ends = max(_ENDS_AT_ONCE, len(everybody) // _TURNS)
        self._look(everybody, now, max(1, _AT_ONCE // ends))
        if self.limits.max_connections_per_address:
            # WebSockets leave the guard's sight but stay in the server's set: count again who is there.
            self._counts = Counter(_address(one) for one in self._state.connections)

    def _look(self, left: list[Guarded], now: float, end: int) -> None:
        """Look at some of these connections, and at the rest in the next turns of the loop; one that ends counts as so
        many.
        """
        room = _AT_ONCE
        try:
            while left and room > 0:
                ended = (one := left.pop()) in self._connections and (self._cut_off(one, now) or self._judge(one, now))
                room -= end if ended else 1
        finally:
            if left:
                self._loop.call_soon(self._look, left, now, end)

    def _cut_off(self, connection: Guarded, now: float) -> bool:
        """End a connection whose peer has taken nothing of what we write for too long."""
        unsent = connection.transport.get_write_buffer_size()
        if unsent == 0 or unsent < connection.unsent:
            connection.unsent_since = now
        connection.unsent = unsent
        if late := now - connection.unsent_since > self.limits.write_timeout:
            connection.transport.abort()
        return late

    def _judge(self, connection: Guarded, now: float) -> bool:
        """End a connection whose peer has kept us waiting for too long."""
        if connection.unsent:
            return False
        if connection.held:
            connection.since = now
        phase = connection.phase
        patience = self._patience.get(phase, inf)
        if now - connection.since <= (min(patience, _LINGER) if connection.over_cap else patience):
            return False
        if phase in _TOO_SLOW:
            connection.refuse(_TOO_SLOW[phase])
        elif connection.busy:
            return False
        elif phase == CLOSED or connection.transport.is_closing():
            # Over TLS, a close waits for the peer's own, which may never come.
            connection.transport.abort()
        else:
            connection.transport.close()
        return True


def guard_of(state: ServerState, limits: HttpLimits, loop: asyncio.AbstractEventLoop) -> Guard:
    """The guard of a running server, which the first connection makes."""
    guard: Guard | None = state.__dict__.get("millstream_guard")
    if guard is None:
        guard = state.__dict__["millstream_guard"] = Guard(state, limits, loop)
    return guard


def _address(connection: object) -> str:
    client: tuple[str, int] | None = getattr(connection, "client", None)
    return neighborhood(client[0]) if client else ""
