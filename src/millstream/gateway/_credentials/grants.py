"""Access tokens without user interaction: the gateway's own (client credentials), and exchanged ones (RFC 8693)."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from millstream import ProtocolError, ToolError
from millstream._http.client.url import Url
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._server.calls.services import Services
from millstream.client import AccessDenied, ConnectFailed
from millstream.client._oauth.discovery import IssuerMetadata, find_issuer, parse_secure
from millstream.client._oauth.endpoints import TokenResponse, ask_token
from millstream.client._oauth.store import PRIVATE_KEY_JWT, Registration, Tokens
from millstream.gateway._credentials.options import ClientCredentials, TokenExchange
from millstream.gateway._credentials.source import LinkCaller, UpstreamCredentials, outbound_for
from millstream.gateway._credentials.tokens import SharedTokens, StoredGrant, make_grant
from millstream.gateway._results import call_error

if TYPE_CHECKING:
    from millstream._server.calls.call import Call

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  it's the name of a kind
_DEFAULT_LIFETIME = 300.0
"""Seconds for which an exchanged token is used if the issuer doesn't say when it expires."""
_LIST_RETRY_SECONDS = 30.0
"""Seconds until lists are read again with a token that failed to read them, unless another caller reads them first."""
_TOKEN_SECONDS = 3600.0
"""Seconds for which a token without a known expiry is stored."""


class _TokenCredentials(UpstreamCredentials):
    """Tokens of a configured authorization server."""

    def __init__(
        self, upstream: str, forward: Sequence[str], url: Url, options: ClientCredentials | TokenExchange,
        services: Services,
    ) -> None:  # fmt: skip
        """Create the credentials and read the secrets.

        Args:
            upstream: Name of the upstream.
            forward: See `UpstreamCredentials`.
            url: URL of the upstream.
            options: The operator's options.
            services: Services of the server.

        Raises:
            LocalError: A secret is missing.
            ValueError: A key can't sign.
        """
        super().__init__(upstream, forward)
        self._options = options
        self._target = options.resource or str(url)
        self._outbound = outbound_for(url, private_addresses=options.private_addresses)
        self._read()
        parts = (upstream, str(url), type(options).__name__, options.issuer, options.token_url, options.client_id,
                 " ".join(options.scope), self._target)  # fmt: skip
        digest = sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._tokens = SharedTokens(services, f"gateway-token:{digest}:", ttl=_TOKEN_SECONDS, lossy=True)

    @override
    async def close(self) -> None:
        """Finish running tasks."""
        await self._tokens.close()

    def _read(self) -> None:
        options, owner = self._options, f"the upstream {self.upstream!r}"
        secret = options.client_secret.read(owner) if options.client_secret is not None else ""
        key = options.private_key.read(owner) if options.private_key is not None else ""
        method = ""
        if key:
            from millstream.client._oauth.signing import check_key  # noqa: PLC0415  needed only for signatures

            try:
                check_key(key)
            except ValueError as exc:
                raise LocalError(f"The private_key of {owner} can't sign. {exc}") from None
            method = PRIVATE_KEY_JWT
        elif secret:
            method = "client_secret_post" if options.secret_in_form else "client_secret_basic"
        self._registration = Registration(options.client_id, secret, method or "none", key, options.key_id)

    async def _issuer(self) -> IssuerMetadata:
        options = self._options
        if options.token_url:
            parse_secure(options.token_url)
            return IssuerMetadata(issuer=options.token_url, token_endpoint=options.token_url)
        found = await find_issuer(options.issuer, self._outbound)
        if found is None:
            raise ConnectFailed(
                f"The metadata of {options.issuer} isn't available. If it has none, set its token_url instead."
            )
        return found

    async def _ask(self, form: Mapping[str, str]) -> TokenResponse:
        issuer = await self._issuer()
        response = await ask_token(issuer, self._registration, form, self._outbound)
        response.check(issuer.issuer, f"token for the upstream {self.upstream!r}")
        return response

    def _form(self, grant_type: str, **more: str) -> dict[str, str]:
        scope = " ".join(self._options.scope)
        return {"grant_type": grant_type, "resource": self._target, **({"scope": scope} if scope else {}), **more}


class OwnCredentials(_TokenCredentials):
    """One token for all callers (RFC 6749 §4.4)."""

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the token that all workers share."""
        grant = await self._tokens.get("own", self._renew)
        return {} if grant is None else _header(grant)

    @override
    async def replace_refused(self, caller: LinkCaller, status: int, sent: Mapping[str, str]) -> bool:
        """Request another token."""
        return await self._tokens.replace("own", _sent_token(sent), self._renew)

    async def _renew(self, old: StoredGrant | None) -> StoredGrant:
        try:
            self._read()  # a file may have been rotated
        except LocalError as exc:
            raise AccessDenied(str(exc), 401) from None
        response = await self._ask(self._form("client_credentials"))
        now = time.time()
        expires_at = now + response.expires_in if response.expires_in else 0
        return make_grant(Tokens(response.access_token, scope=response.scope, expires_at=expires_at), now=now)


class ExchangedCredentials(_TokenCredentials):
    """Tokens exchanged for each caller's own (RFC 8693)."""

    personal = True

    def __init__(
        self, upstream: str, forward: Sequence[str], url: Url, options: TokenExchange, services: Services
    ) -> None:
        """See `_TokenCredentials`."""
        super().__init__(upstream, forward, url, options, services)
        self._last_key = ""
        """Link key of the most recent caller."""
        self._failed_key = ""
        """Link key whose token failed to read the lists."""
        self._caller_event = asyncio.Event()

    @override
    def _identify(self, call: "Call") -> tuple[str, LinkCaller]:
        principal, headers = call.principal, call.headers
        if principal is None or not principal.issuer or headers is None:
            raise call_error(
                call,
                f"The server {self.upstream!r} behind this gateway requires your access token. Sign in with one: an "
                "API key can't be exchanged.",
            )
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise call_error(
                call,
                f"The server {self.upstream!r} behind this gateway requires your access token. Sign in with one.",
            )
        # A program with fewer scopes must not get the token of another program of the same user.
        rights = sha256(" ".join(sorted(principal.scopes)).encode()).hexdigest()[:16]
        key = f"{principal.binding.hex()}:{rights}"
        exp = principal.claims.get("exp")
        until = min(principal.expires_at, float(exp)) if isinstance(exp, int | float) else principal.expires_at
        return key, LinkCaller({}, principal.id, token.strip().decode("ascii"), until)

    @override
    def link_key(self, call: "Call") -> str:
        """See `UpstreamCredentials.link_key`."""
        key = self._last_key = super().link_key(call)
        self._caller_event.set()
        return key

    def observe(self, call: "Call", seconds: float, answer: bytes) -> None:
        """Store a caller whose token can read the lists, if there's none yet."""
        if not self._caller_event.is_set():
            with suppress(ToolError, ProtocolError):
                self.link_key(call)

    @override
    async def lister(self) -> str:
        """Return the link key of the most recent caller, waiting for one with a valid token."""
        while True:
            key = self._last_key
            caller = self.caller(key)
            self._caller_event.clear()
            if caller is not None and caller.until > time.time():
                if key != self._failed_key:
                    return key
                try:
                    async with asyncio.timeout(_LIST_RETRY_SECONDS):
                        await self._caller_event.wait()
                except TimeoutError:
                    self._failed_key = ""  # there may be no other caller
            else:
                await self._caller_event.wait()

    @override
    def avoid_lister(self, link_key: str) -> None:
        """See `UpstreamCredentials.avoid_lister`."""
        self._failed_key = link_key

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the token that was exchanged for the caller's current one."""
        if caller.until <= time.time():
            raise AccessDenied("The caller's access token has expired.", 401)
        renew = partial(self._exchange, caller.token, caller.until)
        grant = await self._tokens.get(_token_key(caller), renew)
        return {} if grant is None else _header(grant)

    @override
    async def replace_refused(self, caller: LinkCaller, status: int, sent: Mapping[str, str]) -> bool:
        """Exchange the caller's token again."""
        renew = partial(self._exchange, caller.token, caller.until)
        return await self._tokens.replace(_token_key(caller), _sent_token(sent), renew)

    async def _exchange(self, token: str, until: float, old: StoredGrant | None) -> StoredGrant:
        options = self._options
        assert isinstance(options, TokenExchange)  # noqa: S101  checked by `open_credentials`
        form = self._form(
            _EXCHANGE, subject_token=token, subject_token_type=_ACCESS_TOKEN, requested_token_type=_ACCESS_TOKEN
        )
        if options.audience:
            form["audience"] = options.audience
        response = await self._ask(form)
        now = time.time()
        expires_at = min(until, now + (response.expires_in or _DEFAULT_LIFETIME))
        return make_grant(Tokens(response.access_token, scope=response.scope, expires_at=expires_at), now=now)


def _token_key(caller: LinkCaller) -> str:
    """Return the store key of the token exchanged for one token of one user. It doesn't contain the token."""
    return sha256(f"{caller.owner}\n{caller.token}".encode()).hexdigest()


def _header(grant: StoredGrant) -> dict[str, str]:
    return {"Authorization": f"Bearer {grant.token}"}


def _sent_token(sent: Mapping[str, str]) -> str:
    return sent.get("Authorization", "").partition(" ")[2]
