"""Turns: so many at a time for each key. Whoever comes when all are taken waits, in the order of coming, but not for
long: those who ask an issuer that doesn't answer would else hold up everybody behind them.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from millstream.auth._method import Unavailable

PATIENCE: Final = 10.0
"""Seconds that somebody waits for a turn."""


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
        """Have a turn inside the block.

        Raises:
            Unavailable: those before take too long.
        """
        semaphore, there = self._keys.setdefault(key, (asyncio.Semaphore(self._at_once), set()))
        me = object()
        there.add(me)
        try:
            await _acquire(semaphore)
            try:
                yield
            finally:
                semaphore.release()
        finally:
            there.discard(me)
            if not there:
                del self._keys[key]


async def _acquire(semaphore: asyncio.Semaphore) -> None:
    if semaphore.locked():
        try:
            async with asyncio.timeout(PATIENCE):
                await semaphore.acquire()
        except TimeoutError:
            raise Unavailable("Too many sign in from your address at a time. Try again later.") from None
    else:
        await semaphore.acquire()
