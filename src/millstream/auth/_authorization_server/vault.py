"""The state of the authorization server, typed, on the server's store.

Kinds of values have room of their own: what anybody can cause without signing in is `lossy`, so that a flood displaces
its own kind and keeps nobody out; what a person has allowed is never lost before its time.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from millstream._limits.store_limiter import StoreLimiter
from millstream._server.calls.services import Services

TOMBSTONE = b"ended"
"""The value of what has been ended: it stays so."""

T = TypeVar("T")


class Vault:
    """Values of the authorization server."""

    __slots__ = ("_services", "clock", "pool", "refused")

    def __init__(self, services: Services) -> None:
        self._services = services
        self.clock: Callable[[], float] = services.clock
        self.pool: StoreLimiter | None = None
        """Where workers count together; None where there is only one."""
        self.refused: Callable[[str], None] = _nobody_hears
        """Hears the address of every wrong password or client."""

    async def get(self, key: str, kind: type[T]) -> T | None:
        """A value; None when it is absent, or something else."""
        return read(await self.raw(key), kind)

    async def raw(self, key: str) -> bytes | None:
        """A value as it is kept."""
        return await self._services.store.kv.get(key)

    async def put(self, key: str, value: Any, ttl: float, *, lossy: bool = False) -> None:
        """Keep a value for so many seconds."""
        await self._services.store.kv.put(key, pack(value), ttl, lossy=lossy)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Keep a value in place of exactly that one; False when another is there by now."""
        return await self._services.store.kv.compare_and_set(key, before, pack(value), ttl, lossy=lossy)

    async def take(self, key: str) -> bytes | None:
        """Remove a value and give it as it was kept: to one caller only."""
        raw = await self.raw(key)
        taken = raw is not None and await self._services.store.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def delete(self, key: str) -> None:
        """Remove a value."""
        await self._services.store.kv.delete(key)

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """A value as text that only this server can make and read."""
        return self._services.ring.seal(kind, pack(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str, want: type[T], bound: bytes = b"") -> T | None:
        """The value of a text that `seal` made for the same `kind` and `bound`; None for any other."""
        return read(self._services.ring.open(kind, text, bound), want)

    async def tell(self, topic: str, data: bytes) -> None:
        """Tell every worker."""
        await self._services.store.bus.publish(topic, data)

    def hear(self, topic: str, receive: Callable[[bytes], None], missed: Callable[[], None]) -> Callable[[], None]:
        """Call `receive` with what any worker tells, and `missed` when something may be lost; return how to stop."""
        return self._services.store.bus.subscribe(topic, receive, interrupted=missed)


def _nobody_hears(address: str) -> None:
    pass


def pack(value: Any) -> bytes:
    """A value as bytes."""
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(value)


def read(raw: bytes | None, kind: type[T]) -> T | None:
    """The value in these bytes; None when they are of another kind."""
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
