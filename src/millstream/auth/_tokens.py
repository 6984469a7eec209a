"""Signed tokens as an auth method: JSON Web Tokens of one issuer, for one audience.

A cache of verdicts on credentials. A lookup is one dictionary access; all bookkeeping happens on insertion.

A principal with many valid credentials can fill the cache, but then evicts only its own entries. Otherwise it could
force a signature check or a request to the issuer for each request of other callers.
"""

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

from millstream._http.client.fetch import OutboundError, fetch
from millstream._http.client.pool import allow_any
from millstream._oauth import basic_credentials
from millstream._override import override
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream._protocol.principal import Principal
from millstream.auth._jose import InvalidToken, PublicKey, TokenRules, judge, read_header, verify_any
from millstream.auth._method import AuthMethod, Identity, SingleFlight, Unavailable

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


_MAX_REQUESTS = 64
"""Maximum concurrent requests to the endpoint."""

_decode = decoder(dict[str, Any])


class IntrospectedMethod(AuthMethod):
    """The tokens of one issuer."""

    shows = True

    def __init__(
        self,
        rules: TokenRules,
        endpoint: str,
        *,
        client: str,
        secret: str,
        client_tokens: bool = False,
        scopes: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        # Configuration
        self._rules = rules
        self._endpoint = endpoint
        self._headers = {"authorization": basic_credentials(client, secret)}
        self._client_tokens = client_tokens
        self._clock = clock
        self.resource = rules.audience if "://" in rules.audience else ""
        self.issuers = (rules.issuer,)
        self.scopes = tuple(scopes)
        # State
        self._requests = SingleFlight[Identity | None]()
        """Requests in progress; callers with the same token share one."""

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the owner of a token."""
        if len(self._requests) >= _MAX_REQUESTS and not self._requests.runs(credential):
            raise Unavailable("Too many sign-ins at once. Try again later.")
        return await self._requests.run(credential, lambda: self._ask(credential))

    async def _ask(self, credential: str) -> Identity | None:
        form = urlencode({"token": credential, "token_type_hint": "access_token"}).encode()
        try:
            reply = await fetch(self._endpoint, form=form, headers=self._headers, is_allowed=allow_any)
            claims = _decode(reply.body)
        except (OutboundError, *MALFORMED) as exc:
            raise Unavailable("The issuer couldn't verify the token. Try again later.") from exc
        kind = claims.get("token_type", "Bearer")
        if claims.get("active") is not True or not isinstance(kind, str) or kind.lower() != "bearer":
            return None
        if self._client_tokens and "sub" not in claims and "username" not in claims and "client_id" in claims:
            # The client acts for itself, as in signed tokens (RFC 9068 §2.2). Introspection may omit `sub` for users,
            # too (RFC 7662 §2.2), so this is off by default.
            claims["sub"] = claims["client_id"]
        # The endpoint belongs to the issuer, so a missing `iss` means this one.
        return judge({"iss": self._rules.issuer, **claims}, self._rules, self._clock())

    @override
    def holds(self, id: str) -> bool:
        """Return True for every owner of this issuer's tokens; it reports no revocations."""
        return id.startswith(f"{self._rules.issuer} ")
