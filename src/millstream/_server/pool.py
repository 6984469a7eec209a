"""Places that several owners use for a while, such as processes."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from millstream._override import override
from millstream._protocol.principal import Share

WAIT_TIMEOUT = 30.0
"""Seconds that a request waits for a place."""
_MAX_WAITING = 1000
"""Maximum waiting requests for one pool, half of them for one owner."""


class Pool(Share):
    """Places that owners use for a while, such as processes. `acquire` waits until one is free.

    A lone owner may hold all places. With several, an eighth of them is kept for owners that hold nothing.
    A place that is given back goes to the waiting owner that holds least; equal ones take turns.

    Args:
        maximum: Number of places.
        on_wait: Called when a request starts to wait, to give back a place that isn't in use.

    Example:
        ::

            if not await processes.acquire(call.owner):
                raise ToolError("Too many of your calls are waiting. Try again later.")
            try:
                ...
            finally:
                processes.leave(call.owner)
    """

    def __init__(self, maximum: int, *, on_wait: Callable[[], object] = lambda: None) -> None:
        super().__init__(maximum, each=maximum)
        self.waiting: Share = Share(_MAX_WAITING)
        """The waiting requests."""
        self._on_wait = on_wait
        self._first_owner = ""
        self.several: bool = False
        """Whether there's more than one owner. Set it if that's known before the second one comes."""
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        """Waiting owners, the one served last at the end."""

    @override
    def has_room(self, owner: str, amount: int = 1) -> bool:
        """Return whether an owner may hold this many more places now."""
        kept = min(-(-self.maximum // 8), self.maximum - 1) if self.several and owner and self.count(owner) else 0
        return self.used + amount <= self.maximum - kept

    @override
    def take(self, owner: str, amount: int = 1) -> bool:
        """Count places of an owner. Return False, and count nothing, if there's no room."""
        self._first_owner = self._first_owner or owner
        self.several = self.several or owner not in ("", self._first_owner)
        return super().take(owner, amount)

    async def acquire(self, owner: str) -> bool:
        """Take one place as soon as there's room.

        Return False if there's none within `WAIT_TIMEOUT`, or if too many requests are waiting already.
        """
        if self.take(owner):
            return True
        if not self.waiting.take(owner):
            return False
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(owner, deque()).append(future)
        self._on_wait()
        try:
            async with asyncio.timeout(WAIT_TIMEOUT):
                await future
        except (asyncio.CancelledError, TimeoutError) as exc:
            if future.cancelled():
                self._remove(owner, future)
            else:  # the place came at the same time
                self.leave(owner)
            if isinstance(exc, TimeoutError):
                return False
            raise
        finally:
            self.waiting.leave(owner)
        return True

    def move(self, source: str, target: str) -> None:
        """Count a place of one owner for another one that has room for none more (``has_room(target, 0)``)."""
        super().leave(source)
        super().take(target)

    @override
    def leave(self, owner: str, amount: int = 1) -> None:
        """Give back places that `take` or `acquire` has counted."""
        super().leave(owner, amount)
        while self._queues:
            owner = self.next_owner
            if not self.take(owner):
                return
            future = self._queues[owner][0]
            self._remove(owner, future)
            if owner in self._queues:
                self._queues[owner] = self._queues.pop(owner)
            if future.done():  # canceled
                super().leave(owner)
            else:
                future.set_result(None)

    @property
    def next_owner(self) -> str:
        """The waiting owner that gets the next place; empty if there's none."""
        return min(self._queues, key=lambda owner: self.count(owner) if owner else 0, default="")

    def _remove(self, owner: str, future: asyncio.Future[None]) -> None:
        queue = self._queues.get(owner, deque())
        with suppress(ValueError):  # removed by `leave`
            queue.remove(future)
        if not queue:
            self._queues.pop(owner, None)
