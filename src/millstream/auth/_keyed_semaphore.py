"""A semaphore for each key. Waits are fair and bounded, so an unresponsive issuer can't block every caller."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from millstream.auth._method import Unavailable

PATIENCE = 10.0
"""Maximum seconds that a caller waits."""


class KeyedSemaphore:
    """Semaphores by key, created on demand and dropped when unused. For one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._keys = WeakValueDictionary[str, asyncio.Semaphore]()
        """Semaphores in use, by key."""

    def __len__(self) -> int:
        return len(self._keys)

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncGenerator[None]:
        """Hold the semaphore of `key` inside the block.

        Raises:
            Unavailable: it wasn't free within `PATIENCE` seconds.
        """
        semaphore = self._keys.setdefault(key, asyncio.Semaphore(self._at_once))
        try:
            async with asyncio.timeout(PATIENCE):
                await semaphore.acquire()
        except TimeoutError:
            raise Unavailable("Too many sign-ins from your address at once. Try again later.") from None
        try:
            yield
        finally:
            semaphore.release()
