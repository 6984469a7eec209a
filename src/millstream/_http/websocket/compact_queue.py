"""An event and a queue that use little memory while idle.

`asyncio.Event` has one deque for its waiters and `asyncio.Queue` has four. An empty deque takes 760 bytes, and each of
thousands of idle connections would have five.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class CompactEvent:
    """An `asyncio.Event` with `notify`, for waiters with other conditions."""

    __slots__ = ("_open", "_waiters")

    def __init__(self) -> None:
        self._open = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return self._open

    def set(self) -> None:
        """Set the event and wake all waiters."""
        self._open = True
        self.notify()

    def clear(self) -> None:
        """Clear the event, so later waiters block."""
        self._open = False

    def notify(self) -> None:
        """Wake all waiters to check their conditions."""
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_changed(self) -> None:
        """Wait until something may have changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        await waiter

    async def wait(self) -> bool:
        """Wait until it is set."""
        while not self._open:
            await self.wait_changed()
        return True


class CompactQueue(Generic[Item]):
    """An `asyncio.Queue` for a single reader."""

    __slots__ = ("_items", "_news")

    def __init__(self) -> None:
        self._items: deque[Item] | None = None
        self._news = CompactEvent()

    def empty(self) -> bool:
        """Return whether the queue is empty."""
        return self._items is None

    def put_nowait(self, item: Item) -> None:
        """Append an item."""
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        self._news.notify()

    async def get(self) -> Item:
        """Wait for an item, and remove and return the oldest."""
        while self._items is None:
            await self._news.wait_changed()
        item = self._items.popleft()
        if not self._items:
            self._items = None
        return item
