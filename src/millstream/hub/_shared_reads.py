"""Reads of the store that are shared by subscribers that need the same data within seconds.

After a restart, thousands of subscribers reconnect at once, and most missed the same events. The cache is bounded in
bytes and time. A subscriber that waits for its connection keeps no cached data and reads the page again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from msgspec import Struct

CACHE_SECONDS = 10.0
MAX_CACHE_BYTES = 16 * 1024 * 1024

T = TypeVar("T")


class _CachedRead(Struct, Generic[T]):
    """A cached result."""

    value: T
    since: int
    """The worker's offset when the read began."""
    size: int
    end: asyncio.TimerHandle


class _PendingRead(Struct, Generic[T], eq=False):
    """A read in progress."""

    since: int
    future: asyncio.Task[T]


class SharedReads(Generic[T]):
    """Reads of one kind, shared by all subscribers of a worker.

    Args:
        size: Returns the size of a result in bytes.
    """

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._cached: dict[Hashable, _CachedRead[T]] = {}
        self._pending: dict[Hashable, _PendingRead[T]] = {}
        """Reads in progress that can serve further subscribers."""
        self._tasks: set[asyncio.Task[T]] = set()
        """All reads in progress."""
        self.bytes = 0
        """Total size of cached results in bytes, up to `MAX_CACHE_BYTES`."""

    def __len__(self) -> int:
        return len(self._cached)

    async def get(
        self,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, T]],
        *,
        since: int,
        usable: Callable[[int, T | None], bool] = lambda since, value: True,
        final: Callable[[T], bool] = lambda value: True,
    ) -> T:
        """Return the cached result for a key, or read it.

        Args:
            key: Identifies the read.
            read: Reads the store.
            since: The worker's current offset.
            usable: Returns whether a result read at an offset is still complete enough. The result is None while it's
                being read.
            final: Returns whether to cache a result. Other results serve only the callers that wait for this read.
        """
        cached = self._cached.get(key)
        if cached is not None and usable(cached.since, cached.value):
            return cached.value
        pending = self._pending.get(key)
        if pending is None or not usable(pending.since, None):
            pending = self._pending[key] = _PendingRead(since, asyncio.create_task(read()))
            self._tasks.add(pending.future)
            pending.future.add_done_callback(partial(self._on_read_done, key, pending, final))
        return await asyncio.shield(pending.future)

    def _on_read_done(
        self, key: Hashable, pending: _PendingRead[T], final: Callable[[T], bool], done: asyncio.Task[T]
    ) -> None:
        self._tasks.discard(done)
        failed = done.cancelled() or done.exception() is not None
        if self._pending.get(key) is not pending:
            return  # a later read replaced it, or events were lost since it began
        del self._pending[key]
        if failed or not final(done.result()):
            return
        self._drop(key)
        value = done.result()
        size = self._size(value)
        while self._cached and self.bytes + size > MAX_CACHE_BYTES:
            self._drop(next(iter(self._cached)))
        if size <= MAX_CACHE_BYTES:
            end = asyncio.get_running_loop().call_later(CACHE_SECONDS, self._drop, key)
            self._cached[key] = _CachedRead(value, pending.since, size, end)
            self.bytes += size

    def _drop(self, key: Hashable) -> None:
        cached = self._cached.pop(key, None)
        if cached is not None:
            cached.end.cancel()
            self.bytes -= cached.size

    def forget(self) -> None:
        """Drop all results. Pending reads serve only the callers that are already waiting."""
        for key in list(self._cached):
            self._drop(key)
        self._pending.clear()

    def close(self) -> None:
        """Drop all results, and cancel pending reads."""
        self.forget()
        for task in list(self._tasks):
            task.cancel()
