"""A semaphore for each key. Waits are fair and bounded, so an unresponsive issuer can't block every caller."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from millstream.auth._method import Unavailable

PATIENCE = 10.0
"""Maximum seconds that a caller waits."""


class KeyedSemaphore:
    """Semaphores by key, created on demand and dropped when unused. For one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._keys: dict[str, tuple[asyncio.Semaphore, set[object]]] = {}
        """Key -> its semaphore and users. Entries without users are removed."""

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None]:
        """Hold the semaphore of `key` inside the block.

        Raises:
            Unavailable: it wasn't free within `PATIENCE` seconds.
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
            raise Unavailable("Too many sign-ins from your address at once. Try again later.") from None
    else:
        await semaphore.acquire()
