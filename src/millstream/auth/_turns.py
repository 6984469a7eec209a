"""Turns: so many at a time for each key. Whoever comes when all are taken waits, in the order of coming."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turns:
    """Those who have a turn, and those who wait for one. For one event loop."""

    __slots__ = ("_at_once", "_keys")

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._keys: dict[str, tuple[asyncio.Semaphore, set[object]]] = {}
        """Key -> its turns, and whoever has or wants one; nothing is kept of a key when nobody does."""

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncGenerator[None]:
        """Have a turn inside the block."""
        semaphore, there = self._keys.setdefault(key, (asyncio.Semaphore(self._at_once), set()))
        me = object()
        there.add(me)
        try:
            async with semaphore:
                yield
        finally:
            there.discard(me)
            if not there:
                del self._keys[key]
