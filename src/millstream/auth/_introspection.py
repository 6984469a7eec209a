"""Introspection as an auth method: tokens that only their issuer can verify (RFC 7662)."""

import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlencode

from millstream._http.client.fetch import OutboundError, fetch
from millstream._http.client.pool import allow_any
from millstream._oauth import basic_credentials
from millstream._override import override
from millstream._protocol.jsonrpc import MALFORMED, decoder
from millstream.auth._jose import TokenRules, judge
from millstream.auth._method import AuthMethod, Identity, Unavailable
from millstream.auth._single_flight import SingleFlight

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
