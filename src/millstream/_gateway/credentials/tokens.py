"""Access tokens that workers share: sealed in the store, and renewed by one worker at a time.

They're the gateway's own tokens (client credentials), exchanged tokens (RFC 8693, or Entra ID's own grant), or users'
tokens (see `accounts`).

Many refresh tokens can be used only once. A worker takes a lease before it renews, reads the store again, and writes
with compare-and-set, so if two workers need a new token, one requests it, and the other reads it. A renewal runs in its
own task, because a canceled caller would otherwise lose the new refresh token.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf

import msgspec
from msgspec import Struct

from millstream import ProtocolError, ToolError
from millstream._gateway.credentials.source import LinkCaller, UpstreamCredentials, digest_of, outbound_for
from millstream._gateway.errors import ClientRejected
from millstream._gateway.options.credentials import ClientCredentials, TokenExchange
from millstream._gateway.rules.results import call_error
from millstream._http.client.url import Url
from millstream._oauth import EXCHANGE, JWT_BEARER
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._recent import Recent
from millstream._server.calls.call import Call
from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault
from millstream._tasks import SingleFlight
from millstream.client import AccessDenied, ClientError, ConnectFailed, Registration, Tokens
from millstream.client._oauth.endpoints import (
    IssuerMetadata,
    Proofs,
    ask_token,
    find_issuer,
    parse_secure,
    with_private_key,
)
from millstream.stores import Claim

ISSUER_TIMEOUT = 30.0
"""Total seconds for the requests of one renewal to an authorization server."""
_LEASE = 2 * ISSUER_TIMEOUT
_RENEWAL_MARGIN = 30.0
"""Number of seconds before expiry to renew a token, or a fifth of its lifetime if that's less."""
_MAX_CACHED = 4096
MAX_LISTERS = 16
_MAX_RENEWALS = 1024
"""Maximum concurrent renewals."""
_MIN_RENEWAL_INTERVAL = 5.0
"""Seconds after a renewal during which another refusal by the upstream doesn't cause another renewal."""
_KIND = b"gateway token"


class StoredGrant(Struct, frozen=True):
    """Tokens from an authorization server for one upstream and one owner."""

    tokens: Tokens
    renew_at: float = 0.0
    """Unix time at which to renew the access token, or 0 if its expiry is unknown."""
    registration: Registration = msgspec.field(default_factory=Registration)
    """The client registration that the tokens were issued to, if any."""

    @property
    def token(self) -> str:
        """The access token."""
        return self.tokens.access_token

    @property
    def has_expired(self) -> bool:
        """Whether the access token has expired."""
        return 0 < self.tokens.expires_at <= time.time()

    @property
    def has_ended(self) -> bool:
        """Whether only its user can renew it."""
        return not self.tokens.refresh_token and self.has_expired

    @property
    def needs_renewal(self) -> bool:
        """Whether the access token is about to expire."""
        return 0 < self.renew_at <= time.time()


class TokenCredentials(UpstreamCredentials):
    """Access tokens for one upstream, shared through the store of a server. Each grant has a name."""

    _ttl: float = 3600.0
    """Seconds that a grant without an expiry is kept."""
    _lossy: bool = True
    """Whether a grant can be obtained again without a user."""
    _change_count = 0
    """Counter of possible changes in the store."""

    def __init__(self, upstream: str, forward: Sequence[str], services: Services, prefix: str) -> None:
        """Create the credentials without any I/O.

        Args:
            upstream: Name of the upstream.
            forward: See `UpstreamCredentials`.
            services: Services of the server.
            prefix: Prefix of the store keys, before the name of a grant.
        """
        super().__init__(upstream, forward)
        self._vault = Vault(services)
        self._prefix = prefix
        self._proofs = Proofs()
        self._grants: Recent[str, StoredGrant] = Recent(_MAX_CACHED)
        self._renewals = SingleFlight[StoredGrant | None]()
        self._renewal_times: Recent[str, float] = Recent(_MAX_CACHED)
        """Name -> time of this worker's last renewal after a refusal."""
        self._lister_event = asyncio.Event()
        """Set when another account or token may be able to read the lists."""
        self._list_failures: Recent[str, float] = Recent(MAX_LISTERS)
        """Link key -> time of the last failure to read the lists with its credentials."""
        self._topic = f"gateway-token:{prefix}"
        self._stop = self._vault.bus.subscribe(self._topic, self._on_message, interrupted=self._on_message)

    @override
    async def close(self) -> None:
        """Stop after finishing running renewals, which may be receiving a refresh token."""
        self._stop()
        await self._renewals.settle()

    @override
    async def lister(self) -> str:
        """See `UpstreamCredentials.lister`."""
        while True:
            self._lister_event.clear()
            if keys := await self._listers():
                return min(keys, key=lambda each: self._list_failures.get(each, 0))
            await self._lister_event.wait()

    @override
    async def has_lister(self) -> bool:
        """See `UpstreamCredentials.has_lister`."""
        return bool(await self._listers())

    @override
    def avoid_lister(self, link_key: str) -> None:
        """See `UpstreamCredentials.avoid_lister`."""
        self._list_failures.keep(link_key, time.monotonic())

    # For subclasses

    async def _listers(self) -> list[str]:
        """Return the link keys with credentials that can read the lists, in order."""
        return [""]

    def _name(self, caller: LinkCaller) -> str:
        """Return the name of a caller's grant, which doesn't contain a token."""
        return caller.owner

    async def _request(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant | None:
        """Return the successor of a grant, or None if it has ended."""
        raise NotImplementedError

    def _on_change(self, name: str) -> None:
        """Handle a grant that a worker has stored or removed. An empty name means any grant."""

    async def _discard(self, grant: StoredGrant) -> None:
        """Handle a renewed grant that was removed during its renewal."""

    # Stored grants

    def _on_message(self, data: bytes = b"") -> None:
        name = data.decode("utf-8", "replace")
        self._forget(name)
        self._on_change(name)

    def _forget(self, name: str) -> None:
        """Read a grant again from the store when it's needed. An empty name means any grant."""
        self._change_count += 1
        if name:
            self._grants.pop(name, None)
        else:
            self._grants.clear()

    async def load(self, name: str) -> StoredGrant | None:
        """Return the stored grant of a name, even if it has expired."""
        return self._grants.get(name) or (await self._read(name))[1]

    async def _read(self, name: str) -> tuple[bytes | None, StoredGrant | None]:
        key, change_count = self._prefix + name, self._change_count
        raw = await self._vault.kv.get(key)
        found = self._vault.open(_KIND, raw, StoredGrant, key.encode())
        self._remember(name, found, change_count)
        return raw, found

    def _remember(self, name: str, grant: StoredGrant | None, change_count: int) -> None:
        if change_count != self._change_count:
            return  # the grant may have been removed since
        if grant is None:
            self._grants.pop(name, None)
        else:
            self._grants.keep(name, grant)

    def _seal(self, name: str, grant: StoredGrant) -> tuple[bytes, float]:
        """Return the stored form of a grant, and its lifetime in seconds."""
        sealed = self._vault.seal(_KIND, grant, (self._prefix + name).encode())
        until = grant.tokens.expires_at
        lasts = grant.tokens.refresh_token or not until
        return sealed.encode(), self._ttl if lasts else max(until - time.time(), 1.0)

    async def _notify_workers(self, name: str) -> None:
        self._forget(name)
        await self._vault.bus.publish(self._topic, name.encode())

    # Fresh grants

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the token of a caller, renewed if it's about to expire, or nothing if the grant has ended.

        Raises:
            ClientError: It has expired, and can't be renewed at the moment.
        """
        name = self._name(caller)
        grant = await self.load(name)
        if grant is None or grant.needs_renewal:
            grant = await self._renew(caller, name, grant)
        return {} if grant is None else self._proofs.authorize(grant.tokens, method, url)

    @override
    async def replace_refused(self, caller: LinkCaller, sent: Mapping[str, str]) -> bool:
        """Renew the token that was rejected, unless another one is stored already.

        Raises:
            ClientError: It can't be renewed at the moment.
        """
        name = self._name(caller)
        refused = sent.get("Authorization", "").partition(" ")[2]
        _, found = await self._read(name)
        if found is not None and found.token != refused:
            return True
        now = time.monotonic()
        last = self._renewal_times.get(name, -_MIN_RENEWAL_INTERVAL)
        if now - last < _MIN_RENEWAL_INTERVAL and not self._renewals.runs(name):
            return False
        self._renewal_times.keep(name, now)
        fresh = await self._renew(caller, name, found)
        return fresh is not None and fresh.token != refused

    async def _renew(self, caller: LinkCaller, name: str, old: StoredGrant | None) -> StoredGrant | None:
        if len(self._renewals) >= _MAX_RENEWALS and not self._renewals.runs(name):
            raise ConnectFailed("Too many access tokens are being renewed at once. Try again later.")
        return await self._renewals.run(name, lambda: self._renew_alone(caller, name, old))

    async def _renew_alone(self, caller: LinkCaller, name: str, old: StoredGrant | None) -> StoredGrant | None:
        try:
            async with (
                asyncio.timeout(2 * _LEASE),
                Claim(self._vault.kv, f"gateway-lease:{self._prefix}{name}", _LEASE).hold(),
            ):
                raw, found = await self._read(name)
                if found is not None and not found.needs_renewal and (old is None or found.token != old.token):
                    return found  # another worker was faster
                async with asyncio.timeout(ISSUER_TIMEOUT):
                    fresh = await self._request(caller, found)
        except TimeoutError:
            raise ConnectFailed("The authorization server took too long. Try again later.") from None
        except ClientError as exc:
            was_refused = isinstance(exc, ClientRejected) and old is not None and not old.needs_renewal
            if old is not None and not old.has_expired and not was_refused:
                return old  # the old token is still valid for a while
            raise
        if raw is None and fresh is None:
            return None
        sealed, ttl = (None, 1.0) if fresh is None else self._seal(name, fresh)
        change_count = self._change_count
        if await self._vault.kv.compare_and_set(self._prefix + name, raw, sealed, ttl, lossy=self._lossy):
            self._remember(name, fresh, change_count)
            if fresh is None:
                await self._notify_workers(name)
            return fresh
        # It was removed or replaced in the meantime: the user's action wins.
        _, found = await self._read(name)
        if found is None and fresh is not None:
            await self._discard(fresh)
        return found


def make_grant(tokens: Tokens, registration: Registration | None = None) -> StoredGrant:
    """Return a grant for tokens that were just issued.

    Args:
        registration: The client that a user's tokens were issued to. Without a refresh token, they are used until they
            expire.
    """
    margin = min(_RENEWAL_MARGIN, max(tokens.expires_at - time.time(), 0.0) / 5)
    if registration is not None and not tokens.refresh_token:
        margin = 0.0
    return StoredGrant(tokens, tokens.expires_at and tokens.expires_at - margin, registration or Registration())


_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  it's the name of a kind
_DEFAULT_LIFETIME = 300.0
"""Seconds that an exchanged token is used if the issuer doesn't specify an expiry."""


class _IssuedCredentials(TokenCredentials):
    """Tokens from a configured authorization server."""

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
        self._options = options
        if isinstance(options, TokenExchange):
            self.lists_from = options.lists_from
        self._target = options.resource or str(url)
        parts = [upstream, str(url), type(options).__name__, options.issuer, options.token_url, options.client_id,
                 " ".join(options.scope), self._target]  # fmt: skip
        if isinstance(options, TokenExchange):
            parts += options.audience, "on behalf" * options.on_behalf_of
        digest = digest_of("\n".join(parts))
        super().__init__(upstream, forward, services, f"gateway-token:{digest}:")
        self._outbound = outbound_for(url, private_addresses=options.private_addresses)
        self._read_secrets()

    def _read_secrets(self) -> None:
        options = self._options
        secret = options.client_secret.read(self.upstream) if options.client_secret is not None else ""
        key = options.private_key.read(self.upstream) if options.private_key is not None else ""
        method = "none"
        if secret:
            method = "client_secret_post" if options.secret_in_form else "client_secret_basic"
        registration = Registration(options.client_id, secret, method)
        try:
            self._registration = with_private_key(registration, key, options.key_id) if key else registration
        except ValueError as exc:
            raise LocalError(f"The private_key of the upstream {self.upstream!r} can't sign. {exc}") from None

    async def _ask(self, lifetime: float, until: float, **form: str) -> StoredGrant:
        """Request a token.

        Args:
            lifetime: Seconds until it expires if the issuer doesn't specify that, or 0 for never.
            until: Latest expiry, in Unix time.
            form: Parameters of the request.
        """
        options = self._options
        if options.token_url:
            parse_secure(options.token_url)
            issuer: IssuerMetadata | None = IssuerMetadata(options.token_url, token_endpoint=options.token_url)
        else:
            issuer = await find_issuer(options.issuer, self._outbound)
        if issuer is None:
            raise ConnectFailed(
                f"The metadata of {options.issuer} isn't available. If the issuer has none, set token_url instead."
            )
        exchange = options if isinstance(options, TokenExchange) else None
        if options.send_resource and not (exchange and exchange.on_behalf_of):
            form["resource"] = self._target
        if options.scope:
            form["scope"] = " ".join(options.scope)
        if exchange and exchange.audience:
            form["audience"] = exchange.audience
        response = await ask_token(issuer, self._registration, form, self._outbound)
        response.check(issuer.issuer, f"token for the upstream {self.upstream!r}")
        lifetime = max(response.expires_in, 0) or lifetime
        expires_at = min(until, time.time() + lifetime) if lifetime else 0
        return make_grant(Tokens(response.access_token, scope=response.scope, expires_at=expires_at))


class OwnCredentials(_IssuedCredentials):
    """One token for all callers (RFC 6749 §4.4)."""

    account = "the gateway's own token"

    @override
    async def _request(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant:
        try:
            self._read_secrets()  # a file may have been rotated
        except LocalError as exc:
            raise AccessDenied(str(exc), 401) from None
        return await self._ask(0, inf, grant_type="client_credentials")


class ExchangedCredentials(_IssuedCredentials):
    """Tokens exchanged for each caller's own (RFC 8693)."""

    personal = True
    account = "each caller's, by token exchange"
    _last_key = ""
    """Link key of the caller with the token that reads the lists. It stays the same as long as that token works."""

    @override
    def _identify(self, call: Call) -> LinkCaller:
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
        # A program with fewer scopes must not get the token of the same user's other program.
        rights = digest_of(" ".join(sorted(principal.scopes)))
        exp = principal.claims.get("exp")
        until = min(principal.expires_at, float(exp)) if isinstance(exp, int | float) else principal.expires_at
        return LinkCaller(f"{principal.binding.hex()}:{rights}", token.strip().decode("ascii"), until)

    @override
    def link_key(self, call: Call) -> str:
        """See `UpstreamCredentials.link_key`."""
        needs_lister, principal = self._needs_lister(), call.principal
        key = super().link_key(call)
        if needs_lister and principal is not None and self.lists_from in ("", principal.id):
            self._last_key = key
            self._list_failures.pop(key, None)  # it can try again, because the previous one can't
            self._lister_event.set()
        return key

    def _needs_lister(self) -> bool:
        caller = self._callers.get(self._last_key)
        return caller is None or caller.until <= time.time() or self._last_key in self._list_failures

    def observe(self, call: Call, seconds: float, answer: bytes) -> None:
        """Store a caller whose token can read the lists, if there's none."""
        if self._needs_lister():
            with suppress(ToolError, ProtocolError):
                self.link_key(call)

    @override
    async def _listers(self) -> list[str]:
        caller = self._callers.get(self._last_key)
        return [] if caller is None or caller.until <= time.time() else [self._last_key]

    @override
    def _name(self, caller: LinkCaller) -> str:
        if caller.until <= time.time():
            raise AccessDenied("The caller's access token has expired.", 401)
        return digest_of(f"{caller.owner}\n{caller.token}")

    @override
    async def _request(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant:
        form = {
            "grant_type": EXCHANGE, "subject_token": caller.token, "subject_token_type": _ACCESS_TOKEN,
            "requested_token_type": _ACCESS_TOKEN,
        }  # fmt: skip
        if isinstance(self._options, TokenExchange) and self._options.on_behalf_of:
            # https://learn.microsoft.com/entra/identity-platform/v2-oauth2-on-behalf-of-flow
            form = {"grant_type": JWT_BEARER, "assertion": caller.token, "requested_token_use": "on_behalf_of"}
        return await self._ask(_DEFAULT_LIFETIME, caller.until, **form)
