"""Values in the store, and sealed text that only this server can read: tokens, pending logins, and browsers' state."""

import secrets
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from millstream._config import Settings
from millstream._limits import Limiter, Rate, StoreLimiter
from millstream._server.calls.services import Services
from millstream._stores.base import Bus, Map
from millstream._stores.rates import share_for

_MAX_SHARE = 13
"""Length of a share's name."""
TOMBSTONE = b"ended"
"""Value that replaces a revoked entry."""

T = TypeVar("T")


class Vault:
    """Typed values in the store: ``await Vault(host.services).put("shop:ada", basket, ttl=3600)``.

    Values that anyone can create without signing in are `lossy`: when the store is full, a flood displaces only values
    of the same kind, and never a user's grants.

    Args:
        services: Services of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.kv: Map = services.store.kv
        self.bus: Bus = services.store.bus
        self.clock: Callable[[], float] = services.clock
        self.settings: Settings = services.settings

    @property
    def pool(self) -> StoreLimiter | None:
        """The limiter that workers share, or None with a single worker."""
        return self._services.pool

    def report_failure(self, address: str) -> None:
        """Report a failed password or client authentication.

        Args:
            address: Address of the caller.
        """
        self._services.report_failed_sign_in(address)

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """Return a limiter that workers share.

        Args:
            name: Name of the limit.
            rate: Rate of each key.
        """
        return Limiter(name, rate, pool=lambda: self.pool)

    async def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value, or None if it's missing or malformed.

        Args:
            key: Key of the value.
            kind: Type of the value.
        """
        return read(await self.kv.get(key), kind)

    async def put(self, key: str, value: Any, ttl: float, *, lossy: bool = False) -> None:
        """Store a value.

        Args:
            key: Key of the value.
            value: A value that MessagePack can encode, or bytes.
            ttl: Seconds until it's deleted.
            lossy: Whether it may be dropped when the store is full.
        """
        await self.kv.put(key, pack(value), ttl, lossy=lossy)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Replace a value if it still equals another. Return whether it did.

        Args:
            key: Key of the value.
            before: The stored bytes to replace, or None if there must be none.
            value: See `put`.
            ttl: See `put`.
            lossy: See `put`.
        """
        return await self.kv.compare_and_set(key, before, pack(value), ttl, lossy=lossy)

    async def take(self, key: str) -> bytes | None:
        """Remove a value and return its stored bytes. Only one of several concurrent callers gets it.

        Args:
            key: Key of the value.
        """
        raw = await self.kv.get(key)
        taken = raw is not None and await self.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def put_pending(self, kind: str, state: str, login: Struct, ttl: float) -> None:
        """Seal and store a pending login until `take_pending`. If one owner stores too many, only theirs are dropped.

        Args:
            kind: Kind of the key in the store.
            state: See `new_state`.
            ttl: Seconds until it expires.
        """
        sealed = self.seal(kind.encode(), login, state.encode())
        await self.put(_pending_key(kind, state), sealed.encode(), ttl, lossy=True)

    async def take_pending(self, kind: str, state: str, want: type[T]) -> T | None:
        """Remove and return a pending login, or None if there is none with this state.

        Args:
            kind: Kind of the key in the store.
            state: See `new_state`.
            want: Type of the login.
        """
        sealed = await self.take(_pending_key(kind, state))
        return self.open(kind.encode(), sealed, want, state.encode())

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """Encode a value as text that only this server can create and read.

        Args:
            kind: The purpose of the text. Other kinds of text can't be opened.
            value: A value that MessagePack can encode, or bytes.
            bound: Data that's required to open it.
        """
        return self._services.ring.seal(kind, pack(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str | bytes | None, want: type[T], bound: bytes = b"") -> T | None:
        """Decode a value that `seal` encoded. Return None for any other text.

        Args:
            kind: See `seal`.
            text: The text, also as bytes from the store, or None if it's missing.
            want: Type of the value.
            bound: See `seal`.
        """
        return read(
            self._services.ring.open(kind, text if isinstance(text, str) else str(text or b"", "latin-1"), bound), want
        )


def new_secret() -> str:
    """Return a new secret with 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return the stored form of a secret."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_state(owner: str) -> str:
    """Return a secret that finds a pending login: ``await vault.put_pending("shop", new_state(owner), login, 600)``.

    Args:
        owner: The owner of the share in the store: a principal, or the network of an address.
    """
    return f"{share_for(owner)}.{new_secret()}"


def _pending_key(kind: str, state: str) -> str:
    return f"{kind}:{state.partition('.')[0][:_MAX_SHARE]}.{digest(state)}"


def pack(value: Any) -> bytes:
    """Encode a value."""
    return value if isinstance(value, bytes) else msgspec.msgpack.encode(value)


def read(raw: bytes | None, kind: type[T]) -> T | None:
    """Decode a value. Return None if it's missing or has the wrong type."""
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
