"""Admission limits on the number and size of running calls. One caller can use half of each."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from time import monotonic
from typing import Any, Protocol

from millstream._protocol.errors import OVERLOADED, ProtocolError
from millstream._protocol.principal import Share
from millstream._server.calls.call import Call

LIGHT = 16 * 1024
"""A smaller request counts as one call, but its bytes don't count."""

SPARE = 1_000
"""Number of pings that can run in addition to the maximum of calls. Hooks can make a ping slow, so they're bounded,
too.
"""

_RECOUNT = 0.25
"""Seconds for which a count of calls per caller stays valid for refusals."""


class RequestOwner(Protocol):
    """A call, or another object with a caller."""

    @property
    def owner(self) -> str:
        """The owner, see `Call.owner`. Empty for a caller that has the server to itself."""
        ...

    @property
    def principal(self) -> Any:
        """The principal, or None for an anonymous caller."""
        ...


class Requester(Protocol):
    """A request that isn't a call: an HTTP request, or a message on a WebSocket."""

    @property
    def owner(self) -> str:
        """See `Call.owner`."""
        ...

    @property
    def peer(self) -> str:
        """The address it comes from, or an empty string."""
        ...


RequestGate = Callable[[Requester], Awaitable[None]]
"""Returns to admit a request, or raises `ProtocolError`."""


class Load:
    """The calls in flight of one server, as counts."""

    def __init__(
        self,
        calls: Collection[Call],
        endings: Collection[Callable[[], None]],
        bodies: Share,
        *,
        max_calls: int,
    ) -> None:
        # Configuration
        self.max_calls: int = max_calls
        self.max_each: int = max(1, max_calls // 2)
        """Maximum calls in flight per caller. With fewer in total, no count per caller is needed."""
        # Process
        self._calls = calls
        self._endings = endings
        self._bodies = bodies
        self._shares: Counter[str] = Counter()
        """Caller -> number of its calls, counted on demand."""
        self._full: set[str] = set()
        """Callers that were at their limit at the last count."""
        self._counted_at = -_RECOUNT

    @property
    def running(self) -> int:
        """Return the number of running calls. Open subscriptions count as streams instead."""
        return len(self._calls) - len(self._endings)

    def admit(self, caller: RequestOwner, method: str = "") -> None:
        """Refuse a call if the limit is reached, in total or for its caller.

        Answers, cancellations, and notifications are never refused for load, because they reduce it. A ping isn't
        refused either, because an overloaded server is still alive.

        Args:
            caller: The caller.
            method: The method.

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
        """Count the bytes of a request until its call is over. This is the last step before the call runs.

        Raises:
            ProtocolError: The limit is reached, see `admit`.
        """
        if not self.takes(call, size):
            raise busy_error()

    def full(self, owner: str) -> bool:
        """Return whether a caller is at its limit."""
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
            if owner not in self._full:  # some of those counted may have finished
                self._shares[owner] = sum(each == owner for each in self._owners())
            if self._shares[owner] >= self.max_each:
                self._full.add(owner)
                return True
        self._shares[owner] += 1
        return False

    def takes(self, call: Call, size: int) -> bool:
        """Count the bytes like `take`, but return False instead of raising."""
        if size > LIGHT:
            if not self._bodies.take(call.owner, size):
                return False
            call.weight = size
        return True

    def _owners(self) -> Iterator[str]:
        return (call.owner for call in self._calls if not (call.long_lived or call.method == "subscriptions/listen"))


def busy_error() -> ProtocolError:
    """Return the error for a call above the limit."""
    return ProtocolError(OVERLOADED, "Too many calls are running. Try again later.", status=503)


def too_many_streams(yours: int) -> ProtocolError:
    """Return the error for a stream above the limit."""
    text = f"Too many open streams, {yours} of them yours. Close some, or try again later."
    return ProtocolError(OVERLOADED, text, status=503)


def release_arguments(call: Call, bodies: Share) -> None:
    """Release the arguments of a large call, which then no longer count."""
    if call.weight:
        bodies.leave(call.owner, call.weight)
        call.weight = 0


async def stop_calls(calls: Collection[Call], clock: Callable[[], float], seconds: float) -> None:
    """Stop all running calls at shutdown. They're answered with an error.

    A call that doesn't end within some seconds, or whose answer can't be written, is abandoned.
    """
    until = clock() + seconds
    while calls and clock() < until:
        for call in list(calls):
            call.halt()
        await asyncio.sleep(0.01)


async def wait_for(owed: Collection[Call], calls: Collection[Call], clock: Callable[[], float], seconds: float) -> None:
    """Wait until the given calls have ended, with a time limit."""
    until = clock() + seconds
    while any(each in calls for each in owed) and clock() < until:  # noqa: ASYNC110  no event signals it
        await asyncio.sleep(0.01)
