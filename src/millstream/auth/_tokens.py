"""Signed tokens as an auth method: JSON Web Tokens of one issuer, for one audience.

A cache of verdicts on credentials. A lookup is one dictionary access; all bookkeeping happens on insertion.

A principal with many valid credentials can fill the cache, but then evicts only its own entries. Otherwise it could
force a signature check or a request to the issuer for each request of other callers.
"""

import time
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from millstream._override import override
from millstream._protocol.principal import Principal
from millstream.auth._jose import InvalidToken, PublicKey, TokenRules, judge, read_header, verify_any
from millstream.auth._method import AuthMethod, Identity

TYPES = frozenset(("at+jwt", "jwt", ""))
"""RFC 9068 requires ``at+jwt``; most issuers send ``jwt`` or nothing."""


class Keys(Protocol):
    """The keys of an issuer."""

    epoch: int

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """Return the keys that may have made a signature. Raises `Unavailable`."""
        ...

    async def prefetch(self) -> None:
        """Fetch the keys before the first token."""


class TokenMethod(AuthMethod):
    """The tokens of one issuer."""

    def __init__(
        self,
        rules: TokenRules,
        keys: Keys,
        *,
        algorithms: Collection[str],
        scopes: Collection[str] = (),
        types: Collection[str] = TYPES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._algorithms = frozenset(algorithms)
        self._types = types
        self._clock = clock
        self.resource = rules.audience if "://" in rules.audience else ""
        self.issuers = (rules.issuer,)
        self.scopes = tuple(scopes)

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a token."""
        try:
            header = read_header(credential)
        except InvalidToken:
            return None
        if header.alg not in self._algorithms or header.typ not in self._types:
            return None
        claims = verify_any(credential, await self._keys.find(header.kid, header.alg), header.alg)
        return None if claims is None else judge(claims, self._rules, self._clock())

    @override
    def holds(self, id: str) -> bool:
        """Return True for every owner of this issuer's tokens: it reports no revocations, and tokens expire soon."""
        return id.startswith(f"{self._rules.issuer} ")

    @override
    def epoch(self) -> int:
        """Return a number that changes with the keys, because removing a key invalidates its tokens."""
        return self._keys.epoch

    @override
    async def prefetch(self) -> None:
        """Fetch the keys."""
        await self._keys.prefetch()


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
