"""How much runs, and who may start more: so many calls and so many bytes in all, and half of them for one caller."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from millstream._protocol.errors import OVERLOADED, ProtocolError
from millstream._server.calls.call import Call

if TYPE_CHECKING:
    from millstream._http.budget import ByteBudget

LIGHT = 16 * 1024
"""A call that was asked with fewer bytes counts as one call, but its bytes don't count."""

SPARE = 1_000
"""Pings that may run beside as many calls as may: whatever hooks do for them, they have an end, too."""

_RECOUNT = 0.25
"""Seconds for which a count of the calls of each caller is good enough to refuse by."""


class RequestOwner(Protocol):
    """A call, or whatever else knows who asks."""

    @property
    def owner(self) -> str:
        """See `Call.owner`; empty for a caller that has the server to itself."""
        ...

    @property
    def principal(self) -> Any:
        """The principal, or None for an anonymous caller."""
        ...


class Requester(Protocol):
    """A request that makes no call: an HTTP request, or a message on a WebSocket."""

    @property
    def owner(self) -> str:
        """See `Call.owner`."""
        ...

    @property
    def peer(self) -> str:
        """The address it comes from, or an empty string."""
        ...


RequestGate = Callable[[Requester], Awaitable[None]]
"""Lets a request pass, or raises `ProtocolError`."""


class Load:
    """The calls in flight of one running server, as numbers."""

    __slots__ = ("_bodies", "_calls", "_counted_at", "_endings", "_full", "_shares", "max_calls", "max_each")

    def __init__(
        self,
        calls: Collection[Call],
        endings: Collection[Callable[[], None]],
        bodies: "ByteBudget",
        *,
        max_calls: int,
        max_each: int,
    ) -> None:
        # Configuration
        self.max_calls: int = max_calls
        self.max_each: int = max_each or max(1, max_calls // 2)
        """Calls that one caller may have in flight; with fewer in all, nobody needs to be counted."""
        # Process
        self._calls = calls
        self._endings = endings
        self._bodies = bodies
        self._shares: Counter[str] = Counter()
        """Caller -> its calls, counted when it matters."""
        self._full: set[str] = set()
        """Callers that had as many as they may have, when somebody looked since then."""
        self._counted_at = -_RECOUNT

    @property
    def running(self) -> int:
        """Calls that work; open subscriptions count as streams."""
        return len(self._calls) - len(self._endings)

    def admit(self, caller: RequestOwner, method: str = "") -> None:
        """Refuse one more call when as many run as may, in all or of one caller.

        Answers, cancellations and notifications are never refused for load: they are what frees it. A ping isn't
        refused either: it asks whether the server is alive, and a full one is.

        Args:
            caller: whose call it is.
            method: what it asks for.

        Raises:
            ProtocolError: OVERLOADED, HTTP 503.
        """
        if (
            len(self._calls) >= self.max_each
            and not (method == "ping" and self.running < self.max_calls + SPARE)
            and self.full(caller.owner)
        ):
            raise busy_error()

    def take(self, call: Call, size: int) -> None:
        """Count the bytes that a call was asked with until it's over. This is the last step before it runs.

        Raises:
            ProtocolError: there is no room for it, see `admit`.
        """
        if size > LIGHT:
            call.weight = size
            if not self._bodies.take(call.owner, size):
                release_arguments(call, self._bodies)
                raise busy_error()

    def full(self, owner: str) -> bool:
        """Return whether a caller may start no further call."""
        running = self.running
        if running >= self.max_calls:
            return True
        if not owner or running < self.max_each:
            return False
        now = monotonic()
        if now - self._counted_at > _RECOUNT:
            self._counted_at = now
            self._full.clear()
            self._shares = Counter(self._owners())
        if self._shares[owner] >= self.max_each:
            if owner not in self._full:  # of those that came since the count, some may be over
                self._shares[owner] = sum(each == owner for each in self._owners())
            if self._shares[owner] >= self.max_each:
                self._full.add(owner)
                return True
        self._shares[owner] += 1
        return False

    def takes(self, call: Call, size: int) -> bool:
        """As `take`, but gives False instead of raising."""
        try:
            self.take(call, size)
        except ProtocolError:
            return False
        return True

    def _owners(self) -> Iterator[str]:
        return (call.owner for call in self._calls if not (call.lasting or call.method == "subscriptions/listen"))


def most_streams(caller: RequestOwner, max_streams: int, max_per_principal: int) -> int:
    """How many streams a caller may have open. Of an address where nobody signs in, it's half of all at most."""
    if caller.principal is not None or not caller.owner:
        return max_per_principal
    return min(max_per_principal, max(1, max_streams // 2))


def busy_error() -> ProtocolError:
    """Return the refusal of a call for which there is no room now."""
    return ProtocolError(OVERLOADED, "Too many calls are running: try again later", status=503)


def release_arguments(call: Call, bodies: "ByteBudget") -> None:
    """A large call lets go of what it was asked with, and stops counting."""
    if call.weight:
        bodies.give(call.owner, call.weight)
        call.weight = 0


async def stop_calls(calls: Collection[Call], clock: Callable[[], float], seconds: float) -> None:
    """Stop all calls that run, because the server stops and waits no longer: they're answered with an error.

    A call that doesn't end within some seconds, or whose answer can't be written, isn't waited for.
    """
    until = clock() + seconds
    while calls and clock() < until:
        for call in list(calls):
            call.halt()
        await asyncio.sleep(0.01)


async def wait_for(owed: Collection[Call], calls: Collection[Call], clock: Callable[[], float], seconds: float) -> None:
    """Wait until some of the calls that run have ended, for so long at most."""
    until = clock() + seconds
    while any(each in calls for each in owed) and clock() < until:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.01)
