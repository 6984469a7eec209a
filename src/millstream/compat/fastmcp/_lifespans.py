"""Lifespans that a program composes, as fastmcp has them: ``FastMCP("shop", lifespan=database | cache)``."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

Enter = Callable[[Any], AbstractAsyncContextManager[Any]]


class Lifespan:
    """What runs around a server. ``one | other`` enters both, in this order, and puts their dicts together."""

    def __init__(self, enter: Enter) -> None:
        """Call it with the server."""
        self._enter = enter

    def __call__(self, server: Any) -> AbstractAsyncContextManager[Any]:
        """For the length of the block; gives a dict, an empty one if the function yields nothing."""
        return self._given(server)

    @asynccontextmanager
    async def _given(self, server: Any) -> AsyncGenerator[Any]:
        async with self._enter(server) as found:
            yield {} if found is None else found

    def __or__(self, other: "Lifespan") -> "Lifespan":
        """Both; where both have a key, the right one counts."""

        @asynccontextmanager
        async def both(server: Any) -> AsyncGenerator[dict[str, Any]]:
            async with self(server) as left, other(server) as right:
                yield {**left, **right}

        return Lifespan(both)


def lifespan(function: Callable[[Any], Any]) -> Lifespan:
    """Decorate an async generator function that takes the server and yields a dict, or nothing."""
    return Lifespan(asynccontextmanager(function))
