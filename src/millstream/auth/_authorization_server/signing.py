"""The keys that sign tokens: made by whoever needs them first, shared by the store, and changed every month.

A new key is published a day before it signs, and an old one for as long as its tokens live, so that nobody who keeps
the public keys for some hours meets a token of an unknown one. In the store they are sealed with the server's key
ring. Whoever can read the store but not the ring cannot sign.
"""

import logging
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from millstream.auth._authorization_server.records import new_secret
from millstream.auth._authorization_server.vault import Vault
from millstream.auth._jose import PublicKey, load_private_key, new_private_key, public_part, read_keys, sign
from millstream.auth._key_sets import select_keys
from millstream.auth._single_flight import SingleFlight

logger = logging.getLogger("millstream")

SIGNS = 30 * 86_400.0
"""Seconds for which a key signs."""
AHEAD = 86_400.0
"""Seconds for which it is published before."""
AFTER = 7200.0
"""And after: longer than any token lives."""
_FRESH = 60.0
"""Seconds after which a worker looks whether another one has changed the keys."""
_PAUSE = 1.0
_KEY, _KIND = "oauth-keys:signing", b"oauth signing keys"
_TTL = 10 * 365 * 86_400.0
_TRIES = 8


class SigningKey(Struct, frozen=True):
    """One key."""

    kid: str
    key: Mapping[str, Any]
    """With what is private (RFC 7517)."""
    begins: float
    """When it begins to sign. The next one ends that."""


class Signing:
    """The keys, as one worker knows them."""

    def __init__(self, vault: Vault) -> None:
        # Configuration
        self._vault = vault
        # Process
        self._keys: tuple[SigningKey, ...] = ()
        self._public: list[PublicKey] = []
        self._looked = float("-inf")
        self._loaded: dict[str, Any] = {}
        self._flight = SingleFlight[None]()
        self.epoch: int = 0
        """Changes when a key is taken away."""

    async def sign(self, claims: Mapping[str, Any], typ: str = "at+jwt") -> str:
        """A token."""
        await self._refresh(_FRESH)
        now = self._vault.clock()
        # Where another worker made the very first key, by a clock that is a little ahead of ours, none has begun.
        key = ([each for each in self._keys if each.begins <= now] or self._keys[:1])[-1]
        private = self._loaded.get(key.kid)
        if private is None:
            private = self._loaded[key.kid] = load_private_key(key.key)
        return sign(claims, private, key.kid, typ)

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The public keys that may have signed. An unknown one may be another worker's."""
        await self._refresh(_FRESH)
        found = select_keys(self._public, kid, algorithm)
        if not found:
            await self._refresh(_PAUSE)
            found = select_keys(self._public, kid, algorithm)
        return found

    async def public(self) -> dict[str, Any]:
        """The set that everybody may have."""
        await self._refresh(_FRESH)
        return {"keys": [public_part(each.key) for each in self._keys]}

    async def _refresh(self, age: float) -> None:
        now = self._vault.clock()
        if now - self._looked >= age:
            await self._flight.run("keys", self._load)

    async def _load(self) -> None:
        for _ in range(_TRIES):
            raw, now = await self._vault.raw(_KEY), self._vault.clock()
            kept = self._vault.open(_KIND, raw.decode("latin-1"), tuple[SigningKey, ...]) if raw else None
            if raw and not kept:
                logger.warning(
                    "The keys that sign tokens were sealed with another MILLSTREAM_KEY. New ones are made, and the "
                    "tokens that were given out end."
                )
            keys = advance(kept or (), now)
            if keys == kept:
                self._use(keys, now)
                return
            sealed = self._vault.seal(_KIND, keys).encode()
            if await self._vault.exchange(_KEY, raw, sealed, _TTL):
                self._use(keys, now)
                return
        raise RuntimeError("The keys that sign tokens change faster than they can be read.")

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
    """The keys as they ought to be now, in the order in which they sign."""
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
