"""Access tokens that workers share: sealed in the store, and renewed by one worker at a time.

They are the gateway's own (client credentials), exchanged ones (RFC 8693), or those of users, see `accounts`.

Many refresh tokens can be used only once. A worker takes a lease before it renews, reads the store again, and writes
with compare-and-set, so of two workers that need a new token, one requests it and the other reads it. A renewal runs in
its own task, because a canceled caller would otherwise lose the new refresh token.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256

import msgspec
from msgspec import Struct

from millstream import ProtocolError, ToolError
from millstream._override import override
from millstream.auth.pages import Vault
from millstream.client import AccessDenied, ClientError, ConnectFailed, Registration, Tokens
from millstream.client.oauth import (
    IssuerMetadata,
    TokenResponse,
    ask_token,
    find_issuer,
    parse_secure,
    with_private_key,
)
from millstream.gateway._credentials import ClientCredentials, TokenExchange
from millstream.gateway._credentials.source import LinkCaller, UpstreamCredentials, outbound_for
from millstream.gateway._results import call_error
from millstream.http import Url
from millstream.parts import Call, Recent, Services, SingleFlight
from millstream.protocol import LocalError
from millstream.stores import Claim

ISSUER_TIMEOUT = 30.0
"""Total seconds for the requests of one renewal to an authorization server."""
_LEASE = 2 * ISSUER_TIMEOUT
_RENEWAL_MARGIN = 30.0
"""Seconds before expiry at which a token is renewed, or a fifth of its lifetime if that's less."""
_MAX_CACHED = 4096
_MAX_RENEWALS = 1024
"""Maximum concurrent renewals."""
_MIN_RENEWAL_INTERVAL = 5.0
"""Seconds after a renewal during which another refusal by the upstream doesn't cause another renewal."""
_KIND = b"gateway token"
_TOPIC = "gateway-token"


class StoredGrant(Struct, frozen=True):
    """Tokens from an authorization server for one upstream and one owner."""

    tokens: Tokens
    renew_at: float = 0.0
    """Unix time at which to renew the access token; 0 if its expiry is unknown."""
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


def make_grant(tokens: Tokens, registration: Registration | None = None, *, now: float) -> StoredGrant:
    """Return a grant for tokens that were just issued."""
    life = max(tokens.expires_at - now, 0.0)
    renew_at = tokens.expires_at - min(_RENEWAL_MARGIN, life / 5) if tokens.expires_at else 0.0
    return StoredGrant(tokens, renew_at, registration or Registration())


Renew = Callable[[StoredGrant | None], Awaitable[StoredGrant | None]]
"""Returns the successor of a grant, or None if it has ended."""


class SharedTokens:
    """The grants of one upstream."""

    def __init__(
        self,
        services: Services,
        prefix: str,
        *,
        ttl: float,
        lossy: bool,
        on_change: Callable[[str], None] = lambda name: None,
        on_interruption: Callable[[], None] = lambda: None,
        discard: Callable[[str, StoredGrant], Awaitable[object]] | None = None,
    ) -> None:
        """Share grants through the store of a server.

        Args:
            services: Services of the server.
            prefix: Prefix of the store keys, after the kind and a colon.
            ttl: Seconds for which a grant without an expiry is kept.
            lossy: Whether a grant can be obtained again without a user.
            on_change: Called with the name of a grant that a worker has stored or removed.
            on_interruption: Called after such messages may have been lost.
            discard: Called with a renewed grant that was removed during its renewal.
        """
        self._services = services
        self._vault = Vault(services)
        self._prefix = prefix
        self._topic = f"{_TOPIC}:{prefix}"
        self._ttl = ttl
        self._lossy = lossy
        self._on_change = on_change
        self._on_interruption = on_interruption
        self._discard = discard
        self._cache: Recent[str, StoredGrant] = Recent(_MAX_CACHED)
        self._change_count = 0
        """Counter of possible changes in the store."""
        self._renewals = SingleFlight[StoredGrant | None]()
        self._renewal_times: Recent[str, float] = Recent(_MAX_CACHED)
        """Name -> time of this worker's last renewal after a refusal."""
        self._stop = services.store.bus.subscribe(self._topic, self._on_message, interrupted=self._forget_all)

    async def close(self) -> None:
        """Stop after finishing running renewals, which may be receiving a refresh token."""
        self._stop()
        await self._renewals.settle()

    def _forget_all(self) -> None:
        self._change_count += 1
        self._cache.clear()
        self._on_interruption()

    def _on_message(self, data: bytes) -> None:
        name = data.decode("utf-8", "replace")
        self._change_count += 1
        self._cache.pop(name, None)
        self._on_change(name)

    # Stored grants

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def load(self, name: str) -> StoredGrant | None:
        """Return the stored grant of a name, even if it has expired."""
        found = self._cache.get(name)
        if found is None:
            _, found = await self._read(name)
        return found

    async def _read(self, name: str) -> tuple[bytes | None, StoredGrant | None]:
        key, change_count = self._key(name), self._change_count
        raw = await self._services.store.kv.get(key)
        found = None if raw is None else self._vault.open(_KIND, raw.decode("latin-1"), StoredGrant, key.encode())
        if change_count == self._change_count:  # else it may have been removed since
            self._remember(name, found)
        return raw, found

    def _remember(self, name: str, grant: StoredGrant | None) -> None:
        if grant is None:
            self._cache.pop(name, None)
        else:
            self._cache.keep(name, grant)

    def _seal(self, name: str, grant: StoredGrant) -> bytes:
        return self._vault.seal(_KIND, grant, self._key(name).encode()).encode()

    def _lifetime(self, grant: StoredGrant) -> float:
        until = grant.tokens.expires_at
        lasts = grant.tokens.refresh_token or not until
        return self._ttl if lasts else max(until - time.time(), 1.0)

    async def put(self, name: str, grant: StoredGrant) -> None:
        """Store a grant, replacing any other, and notify all workers."""
        await self._services.store.kv.put(
            self._key(name), self._seal(name, grant), self._lifetime(grant), lossy=self._lossy
        )
        await self._notify_workers(name)

    async def remove(self, name: str) -> StoredGrant | None:
        """Remove a grant on all workers, and return it."""
        _, grant = await self._read(name)
        await self._services.store.kv.delete(self._key(name))
        await self._notify_workers(name)
        return grant

    async def _notify_workers(self, name: str) -> None:
        self._change_count += 1
        self._cache.pop(name, None)
        await self._services.store.bus.publish(self._topic, name.encode())

    # Fresh grants

    async def get(self, name: str, renew: Renew) -> StoredGrant | None:
        """Return the grant of a name, renewed if its token is about to expire.

        Raises:
            ClientError: It has expired, and can't be renewed at the moment.
        """
        found = await self.load(name)
        if found is not None and not _needs_renewal(found):
            return found
        return await self._renewal(name, found, renew)

    async def replace(self, name: str, refused: str, renew: Renew) -> bool:
        """Renew a grant whose access token the upstream has refused.

        Returns:
            Whether a retry makes sense, because there's another token.

        Raises:
            ClientError: The grant can't be renewed at the moment.
        """
        _, found = await self._read(name)
        if found is not None and found.token != refused:
            return True
        now = time.monotonic()
        last = self._renewal_times.get(name, -_MIN_RENEWAL_INTERVAL)
        if now - last < _MIN_RENEWAL_INTERVAL and not self._renewals.runs(name):
            return False
        self._renewal_times.keep(name, now)
        fresh = await self._renewal(name, found, renew)
        return fresh is not None and fresh.token != refused

    async def _renewal(self, name: str, old: StoredGrant | None, renew: Renew) -> StoredGrant | None:
        if len(self._renewals) >= _MAX_RENEWALS and not self._renewals.runs(name):
            raise ConnectFailed("Too many access tokens are being renewed at once. Try again later.")
        return await self._renewals.run(name, lambda: self._renew(name, old, renew))

    async def _renew(self, name: str, old: StoredGrant | None, renew: Renew) -> StoredGrant | None:
        try:
            async with (
                asyncio.timeout(2 * _LEASE),
                Claim(self._services.store.kv, f"gateway-lease:{self._prefix}{name}", _LEASE).hold(),
            ):
                raw, found = await self._read(name)
                if found is not None and not _needs_renewal(found) and (old is None or found.token != old.token):
                    return found  # another worker was faster
                async with asyncio.timeout(ISSUER_TIMEOUT):
                    fresh = await renew(found)
        except TimeoutError:
            raise ConnectFailed("The authorization server took too long. Try again later.") from None
        except ClientError:
            if old is not None and not old.has_expired:
                return old  # it's still valid for a while
            raise
        return await self._write(name, raw, fresh)

    async def _write(self, name: str, raw: bytes | None, fresh: StoredGrant | None) -> StoredGrant | None:
        kv, key = self._services.store.kv, self._key(name)
        sealed = None if fresh is None else self._seal(name, fresh)
        ttl = 1.0 if fresh is None else self._lifetime(fresh)
        if raw is None and sealed is None:
            return None
        change_count = self._change_count
        if await kv.compare_and_set(key, raw, sealed, ttl, lossy=self._lossy):
            if change_count == self._change_count:
                self._remember(name, fresh)
            if fresh is None:
                await self._notify_workers(name)
            return fresh
        # It was removed or replaced in between: the user's action wins.
        _, found = await self._read(name)
        if found is None and fresh is not None and self._discard is not None:
            await self._discard(name, fresh)
        return found


def _needs_renewal(grant: StoredGrant) -> bool:
    return 0 < grant.renew_at <= time.time()


_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  it's the name of a kind
_DEFAULT_LIFETIME = 300.0
"""Seconds for which an exchanged token is used if the issuer doesn't say when it expires."""
_LIST_RETRY_SECONDS = 30.0
"""Seconds until lists are read again with a token that failed to read them, unless another caller reads them first."""
_TOKEN_SECONDS = 3600.0
"""Seconds for which a token without a known expiry is stored."""


class _TokenCredentials(UpstreamCredentials):
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

    def _key(self, caller: LinkCaller) -> str:
        """Return the store key of a caller's token, which doesn't contain the token."""
        raise NotImplementedError

    async def _renew(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant:
        """Request another token."""
        raise NotImplementedError

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the token of a caller, which all workers share."""
        grant = await self._tokens.get(self._key(caller), partial(self._renew, caller))
        return {} if grant is None else {"Authorization": f"Bearer {grant.token}"}

    @override
    async def replace_refused(self, caller: LinkCaller, sent: Mapping[str, str]) -> bool:
        """Request another token."""
        refused = sent.get("Authorization", "").partition(" ")[2]
        return await self._tokens.replace(self._key(caller), refused, partial(self._renew, caller))

    def _read(self) -> None:
        options, owner = self._options, f"the upstream {self.upstream!r}"
        secret = options.client_secret.read(owner) if options.client_secret is not None else ""
        key = options.private_key.read(owner) if options.private_key is not None else ""
        method = "none"
        if secret:
            method = "client_secret_post" if options.secret_in_form else "client_secret_basic"
        registration = Registration(options.client_id, secret, method)
        try:
            self._registration = with_private_key(registration, key, options.key_id) if key else registration
        except ValueError as exc:
            raise LocalError(f"The private_key of {owner} can't sign. {exc}") from None

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
    def _key(self, caller: LinkCaller) -> str:
        return "own"

    @override
    async def _renew(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant:
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
    def _identify(self, call: Call) -> tuple[str, LinkCaller]:
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
    def link_key(self, call: Call) -> str:
        """See `UpstreamCredentials.link_key`."""
        key = self._last_key = super().link_key(call)
        self._caller_event.set()
        return key

    def observe(self, call: Call, seconds: float, answer: bytes) -> None:
        """Store a caller whose token can read the lists, if there's none yet."""
        if not self._caller_event.is_set():
            with suppress(ToolError, ProtocolError):
                self.link_key(call)

    @override
    async def lister(self) -> str:
        """Return the link key of the most recent caller, waiting for one with a valid token."""
        while True:
            key = self._last_key
            caller = self._callers.get(key)
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
    def _key(self, caller: LinkCaller) -> str:
        if caller.until <= time.time():
            raise AccessDenied("The caller's access token has expired.", 401)
        return sha256(f"{caller.owner}\n{caller.token}".encode()).hexdigest()

    @override
    async def _renew(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant:
        token, until = caller.token, caller.until
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
