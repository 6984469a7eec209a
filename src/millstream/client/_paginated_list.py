"""Paginated lists, read as a whole or page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from millstream._protocol.notifications import PaginatedResult
from millstream.client._errors import BadAnswer

T = TypeVar("T")

Page = Callable[[str | None], Awaitable[tuple[PaginatedResult, list[T], int]]]
"""Fetches the page at a cursor: the result, its items, and its size in bytes."""


class PaginatedList(Generic[T]):
    """A paginated list: ``await listing`` for all items, or ``async for item in listing`` to fetch pages as needed."""

    def __init__(self, page: Page[T], max_pages: int, max_bytes: int) -> None:
        self._page = page
        self._max_pages = max_pages
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield each item in order.

        Raises:
            BadAnswer: the list doesn't end, or is larger than `Options.max_bytes`.
        """
        total = 0
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            result, items, size = await self._page(cursor)
            total += size
            if total > self._max_bytes:
                raise BadAnswer(f"The server's list is larger than {self._max_bytes:,} bytes.")
            for item in items:
                yield item
            cursor = result.next_cursor
            if not cursor:  # some servers send an empty one with the last page
                return
            if cursor in seen or len(seen) >= self._max_pages:
                raise BadAnswer("The server's list doesn't end: its pages repeat, or there are too many.")
            seen.add(cursor)

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._all().__await__()

    async def _all(self) -> list[T]:
        return [item async for item in self]
