"""Records that several writers change, and exclusive rights, both by compare-and-set on a `Map`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from secrets import token_bytes

from msgspec import Struct, field

from millstream._stores.base import Map
from millstream._tasks import retry_delay

_POLL = 0.05
"""Seconds between attempts to take a claim that another owner has. The store doesn't notify when it's released."""


async def read_again(kv: Map, key: str, attempt: int) -> bytes | None:
    """Return a value to change by compare-and-set, after a delay if earlier attempts met another writer.

    Args:
        kv: The map.
        key: The key.
        attempt: Number of attempts so far, from 0. The delay grows with it, up to a tenth of a second.

    Example:
        ::

            for attempt in range(10):
                raw = await read_again(kv, key, attempt)
                if await kv.compare_and_set(key, raw, edit(raw), ttl):
                    break
    """
    if attempt:
        await asyncio.sleep(retry_delay(attempt, 0.001, 0.1, jitter=1))
    return await kv.get(key)


class Claim(Struct):
    """The exclusive right to a key, for some seconds at a time."""

    kv: Map
    key: str
    ttl: float
    """Seconds after which another owner may take it, unless `keep` is called."""
    owner: bytes = field(default_factory=lambda: token_bytes(16))
    """The value while this owner has the right. By default, only this claim has it."""

    async def take(self) -> bool:
        """Take the right if no owner has it. Return whether it was taken."""
        return await self.kv.compare_and_set(self.key, None, self.owner, self.ttl)

    async def keep(self) -> bool:
        """Renew the right, or take it. Return whether this owner has it."""
        return await self.kv.compare_and_set(self.key, self.owner, self.owner, self.ttl) or await self.take()

    async def leave(self) -> None:
        """Release the right. If it has expired and another owner has it, do nothing."""
        await self.kv.compare_and_set(self.key, self.owner, None, 1.0)

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Wait for the right, and release it at the end of the block."""
        while not await self.take():  # noqa: ASYNC110  the store sends no event
            await asyncio.sleep(_POLL)
        try:
            yield
        finally:
            await self.leave()
