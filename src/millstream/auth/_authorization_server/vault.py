"""Typed state of the authorization server in the server's store.

Values that anyone can create without signing in are `lossy`: when the store is full, a flood displaces only values of
the same kind, and never a user's grants.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from millstream._limits.store_limiter import StoreLimiter
from millstream._server.calls.services import Services
from millstream._stores.rates import share_for
from millstream.auth._authorization_server.records import digest, new_secret

_MAX_SHARE = 12
"""Length of a share's name."""
TOMBSTONE = b"ended"
"""Value that replaces a revoked entry."""

T = TypeVar("T")


class Vault:
    """Typed values in the store."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.clock: Callable[[], float] = services.clock
        self.pool: StoreLimiter | None = None
        """Limiter shared between workers; None with a single worker."""
        self.refused: Callable[[str], None] = _ignore_refusal
        """Called with the address after each failed password or client authentication."""

    async def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value; None if it's missing or malformed."""
        return read(await self.raw(key), kind)

    async def raw(self, key: str) -> bytes | None:
        """Return a value's stored bytes."""
        return await self._services.store.kv.get(key)

    async def put(self, key: str, value: Any, ttl: float, *, lossy: bool = False) -> None:
        """Store a value for `ttl` seconds."""
        await self._services.store.kv.put(key, pack(value), ttl, lossy=lossy)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Replace a value if it still equals `before`; return whether it did."""
        return await self._services.store.kv.compare_and_set(key, before, pack(value), ttl, lossy=lossy)

    async def take(self, key: str) -> bytes | None:
        """Remove a value and return its stored bytes. Only one of several concurrent callers gets it."""
        raw = await self.raw(key)
        taken = raw is not None and await self._services.store.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def put_pending(self, kind: str, state: str, sealed: str, ttl: float) -> None:
        """Store a pending login until `take_pending`. If one owner stores too many, only theirs are dropped.

        Args:
            kind: kind of the key in the store.
            state: see `new_state`.
            sealed: the login, from `seal`.
            ttl: seconds until it expires.
        """
        await self.put(_pending_key(kind, state), sealed.encode(), ttl, lossy=True)

    async def take_pending(self, kind: str, state: str) -> str:
        """Remove and return a pending login, or an empty string."""
        return (await self.take(_pending_key(kind, state)) or b"").decode("latin-1")

    async def delete(self, key: str) -> None:
        """Delete a value."""
        await self._services.store.kv.delete(key)

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """Encode a value as text that only this server can create and read."""
        return self._services.ring.seal(kind, pack(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str, want: type[T], bound: bytes = b"") -> T | None:
        """Decode a value that `seal` encoded with the same `kind` and `bound`; return None for any other text."""
        return read(self._services.ring.open(kind, text, bound), want)

    async def tell(self, topic: str, data: bytes) -> None:
        """Publish a message to all workers."""
        await self._services.store.bus.publish(topic, data)

    def hear(self, topic: str, receive: Callable[[bytes], None], missed: Callable[[], None]) -> Callable[[], None]:
        """Call `receive` with messages from all workers, and `missed` when some may be lost. Return a function that
        unsubscribes.
        """
        return self._services.store.bus.subscribe(topic, receive, interrupted=missed)


def new_state(owner: str) -> str:
    """Return a new secret that finds the pending login of an owner: a principal, or the network of an address."""
    return f"{share_for(owner)}.{new_secret()}"


def _pending_key(kind: str, state: str) -> str:
    return f"{kind}:{state.partition('.')[0][:_MAX_SHARE]}.{digest(state)}"


def _ignore_refusal(address: str) -> None:
    pass


def pack(value: Any) -> bytes:
    """Encode a value."""
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(value)


def read(raw: bytes | None, kind: type[T]) -> T | None:
    """Decode a value; return None if it's missing or has another type."""
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
