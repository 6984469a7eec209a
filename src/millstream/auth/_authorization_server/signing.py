"""The keys that sign tokens, and the vault in which the authorization server stores its typed state."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from millstream._limits.limiters import Limiter, Rate, StoreLimiter
from millstream._server.calls.services import Services
from millstream._stores.base import Bus, Map
from millstream._stores.rates import share_for
from millstream.auth._authorization_server.records import digest, new_secret
from millstream.auth._jose import (
    PublicKey,
    load_private_key,
    new_private_key,
    public_part,
    read_keys,
    select_keys,
    sign,
)
from millstream.auth._method import SingleFlight

_MAX_SHARE = 12
"""Length of a share's name."""
TOMBSTONE = b"ended"
"""Value that replaces a revoked entry."""

T = TypeVar("T")


class Vault:
    """Typed values in the store.

    Values that anyone can create without signing in are `lossy`: when the store is full, a flood displaces only values
    of the same kind, and never a user's grants.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.kv: Map = services.store.kv
        self.bus: Bus = services.store.bus
        self.clock: Callable[[], float] = services.clock
        self.pool: StoreLimiter | None = None
        """Limiter shared between workers; None with a single worker."""
        self.refused: Callable[[str], None] = lambda address: None
        """Called with the address after each failed password or client authentication."""

    def limiter(self, name: str, rate: Rate) -> Limiter:
        """Return a limiter that workers share."""
        return Limiter(name, rate, pool=lambda: self.pool)

    async def get(self, key: str, kind: type[T]) -> T | None:
        """Return a value; None if it's missing or malformed."""
        return read(await self.kv.get(key), kind)

    async def put(self, key: str, value: Any, ttl: float, *, lossy: bool = False) -> None:
        """Store a value for `ttl` seconds."""
        await self.kv.put(key, pack(value), ttl, lossy=lossy)

    async def exchange(self, key: str, before: bytes | None, value: Any, ttl: float, *, lossy: bool = False) -> bool:
        """Replace a value if it still equals `before`; return whether it did."""
        return await self.kv.compare_and_set(key, before, pack(value), ttl, lossy=lossy)

    async def take(self, key: str) -> bytes | None:
        """Remove a value and return its stored bytes. Only one of several concurrent callers gets it."""
        raw = await self.kv.get(key)
        taken = raw is not None and await self.kv.compare_and_set(key, raw, None, 1)
        return raw if taken else None

    async def put_pending(self, kind: str, state: str, login: Struct, ttl: float) -> None:
        """Seal and store a pending login until `take_pending`. If one owner stores too many, only theirs are dropped.

        Args:
            kind: Kind of the key in the store.
            state: See `new_state`.
            login: The login.
            ttl: Seconds until it expires.
        """
        sealed = self.seal(kind.encode(), login, state.encode())
        await self.put(_pending_key(kind, state), sealed.encode(), ttl, lossy=True)

    async def take_pending(self, kind: str, state: str, want: type[T]) -> T | None:
        """Remove and return a pending login; None if there is none with this state."""
        sealed = await self.take(_pending_key(kind, state))
        return None if sealed is None else self.open(kind.encode(), sealed.decode("latin-1"), want, state.encode())

    def seal(self, kind: bytes, value: Any, bound: bytes = b"") -> str:
        """Encode a value as text that only this server can create and read."""
        return self._services.ring.seal(kind, pack(value), self._services.nonce(), bound)

    def open(self, kind: bytes, text: str, want: type[T], bound: bytes = b"") -> T | None:
        """Decode a value that `seal` encoded with the same `kind` and `bound`; return None for any other text."""
        return read(self._services.ring.open(kind, text, bound), want)


def new_state(owner: str) -> str:
    """Return a new secret that finds the pending login of an owner: a principal, or the network of an address."""
    return f"{share_for(owner)}.{new_secret()}"


def _pending_key(kind: str, state: str) -> str:
    return f"{kind}:{state.partition('.')[0][:_MAX_SHARE]}.{digest(state)}"


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


logger = logging.getLogger("millstream")

SIGNS = 30 * 86_400.0
"""Seconds for which a key signs tokens."""
AHEAD = 86_400.0
"""Seconds for which a key is published before it signs."""
AFTER = 7200.0
"""Seconds for which a key is published after it stops signing; exceeds the lifetime of a token."""
_FRESH = 60.0
"""Seconds between checks for changes by other workers."""
_PAUSE = 1.0
_KEY, _KIND = "oauth-keys:signing", b"oauth signing keys"
_TTL = 10 * 365 * 86_400.0
_TRIES = 8


class SigningKey(Struct, frozen=True):
    """A signing key."""

    kid: str
    key: Mapping[str, Any]
    """Private key (RFC 7517)."""
    begins: float
    """Time from which it signs, until the next key's."""


class TokenSigner:
    """Signs tokens with the current key.

    Keys are created on first use, shared in the store, and rotated every month. A new key is published a day before its
    first use, and an old one until its tokens have expired, so resource servers can cache the public keys for hours.
    Stored keys are sealed with the server's key ring, so access to the store isn't enough to sign.
    """

    def __init__(self, vault: Vault) -> None:
        # Configuration
        self._vault = vault
        # State
        self._keys: tuple[SigningKey, ...] = ()
        self._public: list[PublicKey] = []
        self._looked = float("-inf")
        self._loaded: dict[str, Any] = {}
        self._flight = SingleFlight[None]()
        self.epoch: int = 0
        """Number that changes when a key is removed."""

    async def sign(self, claims: Mapping[str, Any], typ: str = "at+jwt") -> str:
        """Return a signed token."""
        await self._refresh(_FRESH)
        now = self._vault.clock()
        # No key may have begun yet, if a worker whose clock is ahead has just created the first one.
        key = ([each for each in self._keys if each.begins <= now] or self._keys[:1])[-1]
        private = self._loaded.get(key.kid)
        if private is None:
            private = self._loaded[key.kid] = load_private_key(key.key)
        return sign(claims, private, key.kid, typ)

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the public keys that may have made a signature. Checks for new keys if the id is unknown."""
        await self._refresh(_FRESH)
        found = select_keys(self._public, kid, algorithm)
        if not found:
            await self._refresh(_PAUSE)
            found = select_keys(self._public, kid, algorithm)
        return found

    async def public(self) -> dict[str, Any]:
        """Return the public key set."""
        await self._refresh(_FRESH)
        return {"keys": [public_part(each.key) for each in self._keys]}

    async def _refresh(self, age: float) -> None:
        now = self._vault.clock()
        if now - self._looked >= age:
            await self._flight.run("keys", self._load)

    async def _load(self) -> None:
        for _ in range(_TRIES):
            raw, now = await self._vault.kv.get(_KEY), self._vault.clock()
            kept = self._vault.open(_KIND, raw.decode("latin-1"), tuple[SigningKey, ...]) if raw else None
            if raw and not kept:
                logger.warning(
                    "The token signing keys were sealed with another MILLSTREAM_SECRET_KEY. Created new keys; issued "
                    "tokens become invalid. To keep tokens valid, don't change MILLSTREAM_SECRET_KEY."
                )
            keys = advance(kept or (), now)
            if keys == kept:
                self._use(keys, now)
                return
            sealed = self._vault.seal(_KIND, keys).encode()
            if await self._vault.exchange(_KEY, raw, sealed, _TTL):
                self._use(keys, now)
                return
        raise RuntimeError("The token signing keys change too fast to be read.")

    def _use(self, keys: tuple[SigningKey, ...], now: float) -> None:
        self._looked = now
        if keys == self._keys:
            return
        if {each.kid for each in self._keys} - {each.kid for each in keys}:
            self.epoch += 1
        self._keys = keys
        self._loaded = {}
        self._public = read_keys({"keys": [public_part(each.key) for each in keys]})


def advance(keys: tuple[SigningKey, ...], now: float) -> tuple[SigningKey, ...]:
    """Return the keys for the time `now`, in the order in which they sign: drop expired keys, and add new ones."""
    following = (*keys[1:], None)[: len(keys)]
    kept = tuple(
        each for each, after in zip(keys, following, strict=True) if after is None or after.begins + AFTER > now
    )
    if not kept:
        return (_make(now),)
    newest = kept[-1]
    if now >= newest.begins + SIGNS - AHEAD:
        return (*kept, _make(max(now + AHEAD, newest.begins + SIGNS)))
    return kept


def _make(begins: float) -> SigningKey:
    kid = new_secret()[:16]
    return SigningKey(kid, new_private_key(kid), begins)
