"""Values that this worker wrote not long ago, should the store have lost them since.

A Redis that takes over from another one lacks what was written last, though clients have been told that it's done. The
worker that wrote it writes it again, unless the store has something newer. Where the data have a new epoch, because
more was lost, only those get something back who would otherwise hear nothing of the loss.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._server.peers import PAUSE
from millstream._stores.base import Store

Age = Callable[[str, bytes | None], float]
"""How new a value is that a key has, so that two of them can be compared; what isn't there is the oldest."""
Brought = Callable[[list[str]], Awaitable[None]]

KEPT_SECONDS: Final = 60.0
"""Longer than a replica lags behind."""
KEPT_BYTES: Final = 8 * 1024 * 1024
_BESIDES: Final = 400
"""Bytes that a value takes besides its own: most are small."""

_logger = logging.getLogger("millstream.server")


class _Wrote(Struct, frozen=True):
    value: bytes
    age: float
    ttl: float
    epoch: str
    at: float


class Written:
    """What one worker wrote. It knows keys and values; how new a value is, it's told."""

    __slots__ = ("_age", "_any_epoch", "_brought", "_bytes", "_kept", "_missed", "_restoring", "_store")

    def __init__(self, store: Store, age: Age, *, brought: Brought | None = None, any_epoch: bool = False) -> None:
        """Nothing happens before `missed` is called.

        Args:
            store: where the values are.
            age: compares them.
            brought: hears of keys whose values were written again.
            any_epoch: also bring them to data of another epoch than they were written to.
        """
        self._store = store
        self._age = age
        self._brought = brought
        self._any_epoch = any_epoch
        self._kept: dict[str, _Wrote] = {}
        self._bytes = 0
        self._restoring: asyncio.Task[None] | None = None
        self._missed = False
        """The store may lack something that hasn't been looked for."""

    def note(self, key: str, value: bytes, ttl: float) -> None:
        """The store has acknowledged a value."""
        if not self._store.shared:
            return
        now = asyncio.get_running_loop().time()
        self.forget(key)
        self._kept[key] = _Wrote(value, self._age(key, value), ttl, self._store.epoch, now)
        self._bytes += len(value) + _BESIDES
        while self._kept:
            oldest = next(iter(self._kept))
            if self._bytes <= KEPT_BYTES and self._kept[oldest].at > now - KEPT_SECONDS:
                break
            self.forget(oldest)

    def forget(self, key: str) -> None:
        """What was written counts no more."""
        wrote = self._kept.pop(key, None)
        if wrote is not None:
            self._bytes -= len(wrote.value) + _BESIDES

    def missed(self) -> None:
        """The store may be another one than before, and lack what this worker wrote last: look for it."""
        self._missed = True
        if self._kept and (self._restoring is None or self._restoring.done()):
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def close(self) -> None:
        """Look for nothing any more."""
        if self._restoring is not None:
            self._restoring.cancel()
            await asyncio.gather(self._restoring, return_exceptions=True)

    async def _restore(self) -> None:
        while self._missed:
            self._missed = False  # until another one takes over, which may lack what was just brought
            try:
                keys = await self.restore()
                if keys and self._brought is not None:
                    await self._brought(keys)
                continue
            except (LocalError, OSError) as exc:
                _logger.warning(
                    "What was written last could not be compared with the store; it is tried again: %s", exc
                )
            self._missed = True
            await asyncio.sleep(PAUSE)

    async def restore(self) -> list[str]:
        """Write again what the store lacks; gives the keys.

        Raises:
            StoreUnavailable: the store doesn't answer.
        """
        restored: list[str] = []
        since = asyncio.get_running_loop().time() - KEPT_SECONDS
        for key, wrote in list(self._kept.items()):
            if wrote.at <= since or not (self._any_epoch or wrote.epoch == self._store.epoch):
                self.forget(key)
            elif await self._bring(key, wrote):
                restored.append(key)
        return restored

    async def _bring(self, key: str, wrote: _Wrote) -> bool:
        kv = self._store.kv
        while True:
            present = await kv.get(key)
            if self._age(key, present) >= wrote.age:
                return False
            if await kv.compare_and_set(key, present, wrote.value, wrote.ttl):
                return True
