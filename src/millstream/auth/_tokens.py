"""Signed tokens as a method: JSON Web Tokens of one issuer, for one audience."""

import time
from collections.abc import Callable, Collection
from typing import Protocol

from millstream.auth._claims import Rules, judge
from millstream.auth._jose import InvalidToken, PublicKey, read_header, verify
from millstream.auth._method import AuthMethod, Identity

TYPES = frozenset(("at+jwt", "jwt", ""))
"""RFC 9068 wants the first; most issuers write the second, or nothing."""


class Keys(Protocol):
    """The keys of an issuer."""

    epoch: int

    async def find(self, kid: str | None, algorithm: str) -> list[PublicKey]:
        """The keys that may have signed. Raises `Unavailable`."""
        ...

    async def prefetch(self) -> None:
        """Have them before a token comes."""


class TokenMethod(AuthMethod):
    """The tokens of one issuer."""

    def __init__(
        self,
        rules: Rules,
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

    async def identify(self, credential: str) -> Identity | None:
        """Whom a token is about."""
        try:
            header = read_header(credential)
            if header.alg not in self._algorithms or header.typ not in self._types:
                return None
            for key in await self._keys.find(header.kid, header.alg):
                claims = self._open(credential, key, header.alg)
                if claims is not None:
                    return judge(claims, self._rules, self._clock())
        except InvalidToken:
            pass
        return None

    @staticmethod
    def _open(credential: str, key: PublicKey, algorithm: str) -> dict[str, object] | None:
        try:
            return verify(credential, key, algorithm)
        except InvalidToken:
            return None

    def holds(self, id: str) -> bool:
        """Everybody of this issuer: it does not tell whom it has locked out. Their tokens end soon."""
        return id.startswith(f"{self._rules.issuer} ")

    def epoch(self) -> int:
        """Changes with the keys: a token of one that was taken away counts no more."""
        return self._keys.epoch

    async def prefetch(self) -> None:
        """Fetch the keys."""
        await self._keys.prefetch()
