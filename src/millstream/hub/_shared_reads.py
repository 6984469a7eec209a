"""Reads of the store shared by subscribers that need the same data within seconds.

After a restart, thousands of subscribers come back at once, and most missed the same events. The cache is bounded in
bytes and time. A subscriber that waits for its connection holds no cached data and reads the page again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct

KEPT_SECONDS: Final = 10.0
KEPT_BYTES: Final = 16 * 1024 * 1024

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

    __slots__ = ("_kept", "_reading", "_size", "_tasks", "bytes")

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._kept: dict[Hashable, _CachedRead[T]] = {}
        self._reading: dict[Hashable, _PendingRead[T]] = {}
        """Reads in progress that can serve further subscribers."""
        self._tasks: set[asyncio.Task[T]] = set()
        """All reads in progress."""
        self.bytes = 0
        """Total size of cached results, at most `KEPT_BYTES`."""

    def __len__(self) -> int:
        return len(self._kept)

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
        kept = self._kept.get(key)
        if kept is not None and usable(kept.since, kept.value):
            return kept.value
        reading = self._reading.get(key)
        if reading is None or not usable(reading.since, None):
            reading = self._reading[key] = _PendingRead(since, asyncio.create_task(read()))
            self._tasks.add(reading.future)
            reading.future.add_done_callback(partial(self._on_read_done, key, reading, final))
        return await asyncio.shield(reading.future)

    def _on_read_done(
        self, key: Hashable, reading: _PendingRead[T], final: Callable[[T], bool], done: asyncio.Task[T]
    ) -> None:
        self._tasks.discard(done)
        failed = done.cancelled() or done.exception() is not None
        if self._reading.get(key) is not reading:
            return  # a later read replaced it, or events were lost since it began
        del self._reading[key]
        if failed or not final(done.result()):
            return
        self._drop(key)
        value = done.result()
        size = self._size(value)
        while self._kept and self.bytes + size > KEPT_BYTES:
            self._drop(next(iter(self._kept)))
        if size <= KEPT_BYTES:
            end = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._drop, key)
            self._kept[key] = _CachedRead(value, reading.since, size, end)
            self.bytes += size

    def _drop(self, key: Hashable) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.end.cancel()
            self.bytes -= kept.size

    def forget(self) -> None:
        """Drop all results. Pending reads serve only the callers that already wait for them."""
        for key in list(self._kept):
            self._drop(key)
        self._reading.clear()

    def close(self) -> None:
        """Drop all results, and cancel pending reads."""
        self.forget()
        for task in list(self._tasks):
            task.cancel()
