"""Lists that come in pages: read all of them, or as far as you go."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from millstream._protocol.messages import PaginatedResult
from millstream.client._errors import BadAnswer

T = TypeVar("T")

Page = Callable[[str | None], Awaitable[tuple[PaginatedResult, list[T]]]]
"""Gets the page of a cursor: the result and its items."""


class Listing(Generic[T]):
    """``await listing`` is a list of everything; ``async for item in listing`` asks for a page when it gets there."""

    __slots__ = ("_max_pages", "_page")

    def __init__(self, page: Page[T], max_pages: int) -> None:
        self._page = page
        self._max_pages = max_pages

    async def __aiter__(self) -> AsyncIterator[T]:
        """Each item in order.

        Raises:
            BadAnswer: the list doesn't end.
        """
        cursor: str | None = None
        seen: set[str] = set()
        while True:
            result, items = await self._page(cursor)
            for item in items:
                yield item
            cursor = result.next_cursor
            if cursor is None:
                return
            if cursor in seen or len(seen) >= self._max_pages:
                raise BadAnswer("The server's list does not end: its pages repeat, or there are too many.")
            seen.add(cursor)

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self._all().__await__()

    async def _all(self) -> list[T]:
        return [item async for item in self]
