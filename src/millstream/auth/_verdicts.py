"""A cache of verdicts on credentials. A lookup is one dictionary access; all bookkeeping happens on insertion.

A principal with many valid credentials can fill the cache, but then evicts only its own entries. Otherwise it could
force a signature check or a request to the issuer for each request of other callers.
"""

from typing import NamedTuple

from millstream._override import override
from millstream._protocol.principal import Principal

_MAX_ENTRIES = 4096
_MAX_PER_PRINCIPAL = 256
"""Maximum entries of one principal when the cache is full."""


class Verdict(NamedTuple):
    """A verdict on a credential, and its expiry."""

    principal: Principal
    until: float


class Verdicts(dict[bytes, Verdict]):
    """Normalized ``Authorization`` value -> verdict, in order of insertion."""

    def __init__(self) -> None:
        super().__init__()
        self._by_principal: dict[str, dict[bytes, None]] = {}
        """`Principal.id` -> its entries, in the same order."""

    def keep(self, value: bytes, verdict: Verdict) -> None:
        """Cache a verdict. A full cache drops the oldest one, or its principal's oldest at `_MAX_PER_PRINCIPAL`."""
        if value in self:
            del self[value]
        id = verdict.principal.id
        while len(self) >= _MAX_ENTRIES:
            mine = self._by_principal.get(id, {})
            del self[next(iter(mine if len(mine) >= _MAX_PER_PRINCIPAL else self))]
        self[value] = verdict
        self._by_principal.setdefault(id, {})[value] = None

    @override
    def __delitem__(self, value: bytes) -> None:
        id = self[value].principal.id
        super().__delitem__(value)
        mine = self._by_principal[id]
        del mine[value]
        if not mine:
            del self._by_principal[id]

    @override
    def clear(self) -> None:
        """Drop all verdicts."""
        super().clear()
        self._by_principal.clear()
