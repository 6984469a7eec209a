"""The state of the authorization server, typed, on the server's store.

Kinds of values have room of their own: what anybody can cause without signing in is `lossy`, so that a flood displaces
its own kind and keeps nobody out; what a person has allowed is never lost before its time.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from millstream._limits.pool import Pool
from millstream._server.calls.services import Services
from millstream.auth._issuing.records import Code, Grant

TOMBSTONE = b"ended"
"""The value of what has been ended: it stays so."""
_BROUGHT = "oauth-brought"
"""Topic on which workers hear that the store had lost something, and has it again."""

T = TypeVar("T")


class Vault:
    """Values of the authorization server."""

    __slots__ = ("_services", "_written", "clock", "pool", "refused")

    def __init__(self, services: Services) -> None:
        self._services = services
        self._written = services.remember(_age, self._brought)
        self.clock: Callable[[], float] = services.clock
        self.pool: Pool | None = None
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
        raw = packed(value)
        await self._services.store.kv.put(key, raw, ttl, lossy=lossy)
        if not lossy:
            self._written.note(key, raw, ttl)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Keep a value in place of exactly that one; False when another is there by now."""
        raw = packed(value)
        done = await self._services.store.kv.compare_and_set(key, before, raw, ttl, lossy=lossy)
        if done and not lossy:
            self._written.note(key, raw, ttl)
        return done

    async def take(self, key: str) -> bytes | None:
        """Remove a value and give it as it was kept: to one caller only."""
        raw = await self.raw(key)
        taken = raw is not None and await self._services.store.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def delete(self, key: str) -> None:
        """Remove a value."""
        await self._services.store.kv.delete(key)
        self._written.forget(key)

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """A value as text that only this server can make and read."""
        return self._services.ring.seal(kind, packed(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str, want: type[T], bound: bytes = b"") -> T | None:
        """The value of a text that `seal` made for the same `kind` and `bound`; None for any other."""
        return read(self._services.ring.open(kind, text, bound), want)

    async def tell(self, topic: str, data: bytes) -> None:
        """Tell every worker."""
        await self._services.store.bus.publish(topic, data)

    def hear(self, topic: str, receive: Callable[[bytes], None], missed: Callable[[], None]) -> Callable[[], None]:
        """Hear what any worker tells; returns the way to stop. `missed` is called when something may have been missed,
        and when what the store had lost is there again.
        """
        bus = self._services.store.bus
        stops = [bus.subscribe(topic, receive, interrupted=missed), bus.subscribe(_BROUGHT, lambda _: missed())]

        def stop() -> None:
            for each in stops:
                each()

        return stop

    async def _brought(self, keys: list[str]) -> None:
        await self.tell(_BROUGHT, b"")


def _nobody_hears(address: str) -> None:
    pass


def _age(key: str, raw: bytes | None) -> float:
    """Of two values of a key, the newer one: an end is the last, a grant is renewed, a code is used."""
    if raw is None or raw == TOMBSTONE:
        return 0.0 if raw is None else math.inf
    kind = key.partition(":")[0]
    grant = read(raw, Grant) if kind == "oauth-grant" else None
    code = read(raw, Code) if kind == "oauth-code" else None
    return 1.0 + (grant.generation if grant is not None else 0) + (code is not None and code.used)


def packed(value: Any) -> bytes:
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
