"""Records that this worker wrote not long ago, should the store have lost them since.

A Redis that takes over from another one lacks what was written last, though clients have been told that it's done. The
worker that wrote it writes it again. Of two records of one session, the one that was changed more often is newer, and
a tombstone is the last one. A store that lost everything has a new epoch, and gets nothing back.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from millstream._stores.base import Store

KEPT_SECONDS: Final = 60.0
"""Longer than a replica lags behind."""
KEPT_BYTES: Final = 8 * 1024 * 1024
_BESIDES: Final = 400
"""Bytes that a value takes besides its own: most are small."""


class _Wrote(Struct, frozen=True):
    value: bytes
    age: float
    """How often the record had been changed."""
    ttl: float
    epoch: str
    at: float


class Written:
    """What one worker wrote. It knows keys and values; how old a value is, it's told."""

    __slots__ = ("_age", "_bytes", "_kept", "_store")

    def __init__(self, store: Store, age: Callable[[bytes | None], float]) -> None:
        self._store = store
        self._age = age
        self._kept: dict[str, _Wrote] = {}
        self._bytes = 0

    def note(self, key: str, value: bytes, ttl: float) -> None:
        """The store has acknowledged a value."""
        if not self._store.shared:
            return
        now = asyncio.get_running_loop().time()
        self._drop(key)
        self._kept[key] = _Wrote(value, self._age(value), ttl, self._store.epoch, now)
        self._bytes += len(value) + _BESIDES
        while self._kept:
            oldest = next(iter(self._kept))
            if self._bytes <= KEPT_BYTES and self._kept[oldest].at > now - KEPT_SECONDS:
                break
            self._drop(oldest)

    def _drop(self, key: str) -> None:
        wrote = self._kept.pop(key, None)
        if wrote is not None:
            self._bytes -= len(wrote.value) + _BESIDES

    def __bool__(self) -> bool:
        return bool(self._kept)

    async def restore(self) -> list[str]:
        """Write again what the store lacks; gives the keys.

        Raises:
            StoreUnavailable: the store doesn't answer.
        """
        restored: list[str] = []
        since = asyncio.get_running_loop().time() - KEPT_SECONDS
        for key, wrote in list(self._kept.items()):
            if wrote.at <= since or wrote.epoch != self._store.epoch:
                self._drop(key)
            elif await self._bring(key, wrote):
                restored.append(key)
        return restored

    async def _bring(self, key: str, wrote: _Wrote) -> bool:
        kv = self._store.kv
        while True:
            present = await kv.get(key)
            if self._age(present) >= wrote.age:
                return False
            if await kv.compare_and_set(key, present, wrote.value, wrote.ttl):
                return True
