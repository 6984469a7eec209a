"""Sealed records of calls in their owners' shares of the store, under keyed digests. They change by compare-and-set."""

import hmac
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Generic, Protocol, TypeVar

from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault
from millstream._stores.rates import share_for


class StoredRecord(Protocol):
    """A Struct that says when the store forgets it."""

    @property
    def expires(self) -> float: ...


DIGEST = 32
"""Length of a digest."""
R = TypeVar("R", bound=StoredRecord)


class SealedRecords(Generic[R]):
    """The records of one kind, which begins their names."""

    def __init__(self, services: Services, kind: str, record: type[R]) -> None:
        self._services, self._vault = services, Vault(services)
        self._kind, self._sealed_as, self._record = kind, kind.encode(), record

    def digests(self, what: bytes) -> list[str]:
        """Return a digest of bytes with each of the server's secrets, the newest first."""
        return [
            hmac.digest(each, self._sealed_as + what, sha256).hex()[:DIGEST] for each in self._services.secrets.values
        ]

    def names(self, owner: str, digests: Sequence[str]) -> list[str]:
        """Return the names that an owner's record can have."""
        return [f"{self._kind}:{share_for(owner)}.{each}" for each in digests]

    async def find(self, names: Sequence[str]) -> tuple[str, bytes | None, R | None]:
        """Return the name in use, the stored value, and the record, or None if there's none or it can't be opened."""
        values = await self._vault.kv.get_many(names)
        name, raw = max(zip(names, values, strict=True), key=lambda each: each[1] is not None)
        return name, raw, self.open(name, raw)

    def open(self, name: str, raw: bytes | None) -> R | None:
        """Return the record in a stored value."""
        return self._vault.open(self._sealed_as, raw, self._record, name.encode())

    async def write(self, name: str, raw: bytes | None, record: R | None) -> bool:
        """Replace a stored value, or delete it. Return whether it was still the same."""
        vault, value, ttl = self._vault, None, 1.0
        if record is not None:
            value = vault.seal(self._sealed_as, record, name.encode()).encode()
            ttl = max(ttl, record.expires - vault.clock())
        return await vault.kv.compare_and_set(name, raw, value, ttl)


def show_time(seconds: float) -> str:
    """Return a time as text (RFC 3339 §5.6)."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
