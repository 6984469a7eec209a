"""The authorization server: `Issuer` is its configuration, `RunningIssuer` the server in one event loop.

`IssuerEndpoints` is shared with providers of other libraries.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import cast
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from millstream._http.message import JSON_HEAD, Handler, HttpRequest, Response, Sink, plain_problem
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.jsonrpc import Json, decode_object, encode
from millstream._protocol.principal import EVERYTHING, Principal
from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault, pack, read
from millstream._server.functions.description import Names
from millstream._suggestions import suggest_keywords
from millstream._troubles import LogOnce
from millstream.auth._authorization_server.authorize import CONSENT_RATE, AuthorizationEndpoint
from millstream.auth._authorization_server.clients import Clients
from millstream.auth._authorization_server.config import (
    AUTHORIZE,
    INTROSPECT,
    KEYS,
    REGISTER,
    REVOKE,
    SHARED,
    TOKEN,
    IssuerConfig,
    login_methods_of,
    metadata,
    places,
)
from millstream.auth._authorization_server.grants import ENDED, TokenEndpoints, TokenSigner
from millstream.auth._authorization_server.records import OAuthClient, OAuthError
from millstream.auth._authorization_server.tickets import (
    STORE_AWAY,
    PendingLogin,
    Tickets,
    UpstreamPageMethod,
)
from millstream.auth._authorization_server.users import LoginThrottle, UserFile
from millstream.auth._jose import Claims, InvalidToken, TokenRules, judge, scopes_of
from millstream.auth._key_file import check_scopes
from millstream.auth._method import (
    AuthMethod,
    Identity,
    KnownScopes,
    Paths,
    Prefetchable,
    Rejection,
    Rights,
    Unavailable,
    addresses_for,
    prefetch_all,
)
from millstream.auth._pages import brand
from millstream.auth._tokens import inclusions, rules_of, several
from millstream.auth.providers import Callback, LoginMethod, Provider, RedirectTarget, User

logger = logging.getLogger("millstream")

_TRIES = 8
_REVOCABLE = ("grant_id", "jti", "client_id")
"""Claims that identify a token or grant for a revocation check."""
_MAX_RECENT_USERS = 20_000
ALL_PRINCIPALS = ""
"""Marks all principals as revoked, because revocation messages may have been lost."""
_PUBLIC = JSON_HEAD + b"cache-control: public, max-age=300\r\n"


class Issuer(Struct, frozen=True, eq=False):
    """An authorization server that isn't running yet. Created by ``auth.issuer(…)``."""

    config: IssuerConfig

    @property
    def logins(self) -> Mapping[str, RedirectTarget]:
        """The providers where users sign in, by name."""
        return self.config.upstreams

    @property
    def resource(self) -> str:
        """URL of the MCP endpoint, or of the server."""
        return self.config.audience or self.config.url

    def bind(self, services: Services, name: str, known: KnownScopes) -> "RunningIssuer":
        """Return the authorization server of a running server.

        Args:
            services: Services of that server.
            name: Name of that server.
            known: Returns the scopes that the server currently uses.
        """
        config = self.config
        audience = config.audience or config.base + services.settings.path.rstrip("/")

        def addresses() -> Collection[str]:
            return frozenset(addresses_for(audience, services.addresses).values())

        async def keep_tokens(user: User, response: Json) -> None:
            if services.provider_tokens is not None:
                await services.provider_tokens.keep(f"{config.url} {user.subject}", user.login, response)

        running = replace(config, audience=audience, addresses=addresses, known=known, keep_tokens=keep_tokens)
        return RunningIssuer(running, services, name)


class IssuerEndpoints(AuthMethod):
    """The endpoints of an authorization server, and the revocations that its workers announce."""

    def __init__(self, config: IssuerConfig, vault: Vault) -> None:
        self.issuers: tuple[str, ...] = (config.url,)
        self._config = config
        self._vault = vault
        self._changes = 0
        """Number of `epoch` calls that found revocations, from any worker."""
        self._revoked_since_epoch: set[str] = set()
        """Ids of principals with grants or tokens revoked since the last `epoch` call."""
        self._revoked_last_epoch: set[str] = set()
        self._stop = vault.bus.subscribe(ENDED, self._on_announcement, interrupted=self._on_gap)

    @override
    def close(self) -> None:
        """Unsubscribe from announcements."""
        self._stop()

    @override
    def epoch(self) -> int:
        """Return a number that changes after revocations."""
        self._changes += bool(self._revoked_since_epoch)
        self._revoked_last_epoch, self._revoked_since_epoch = self._revoked_since_epoch, set()
        return self._changes

    @override
    def holds(self, id: str) -> bool:
        """Return False for a moment after a revocation, which closes the principal's streams. Clients with other valid
        tokens reconnect.
        """
        return self._revoked_last_epoch.isdisjoint((id, ALL_PRINCIPALS))

    def _on_announcement(self, data: bytes) -> None:
        self._revoked_since_epoch.add(data.decode("utf-8", "replace"))

    def _on_gap(self) -> None:
        self._on_announcement(ALL_PRINCIPALS.encode())

    # HTTP

    def endpoints(self) -> Paths:
        """Return handlers by path, without the issuer's path, and method."""
        raise NotImplementedError

    async def metadata(self, request: HttpRequest) -> Response:
        """Respond with the metadata of the authorization server."""
        raise NotImplementedError

    def catch_errors(self, handler: Handler) -> Handler:
        """Wrap a handler to respond to its errors, such as a store that's unavailable or full."""

        async def answer(request: HttpRequest) -> Response | Sink | None:
            try:
                return await handler(request)
            except OAuthError as exc:
                return exc.response()
            except Unavailable as exc:
                return OAuthError("temporarily_unavailable", str(exc), 503).response()
            except LocalError as exc:
                logger.error("%s %s failed: %s", request.method, request.path, exc)
                return plain_problem(503, STORE_AWAY, b"retry-after: 5\r\n")

        return answer

    @override
    def paths(self) -> Paths:
        """Return handlers by path and method, under the issuer's path and, for proxies that strip it, at the root."""
        ends = self.endpoints()
        found = {prefix + path: each for prefix in {"", self._config.path} for path, each in ends.items()}
        found |= {path: {"GET": self.metadata} for path in places(self._config)}
        return {
            path: {method: self.catch_errors(handler) for method, handler in handlers.items()}
            for path, handlers in found.items()
        }

    @override
    def shared_paths(self) -> frozenset[str]:
        """See `AuthMethod.shared_paths`."""
        shared = {prefix + each for prefix in {"", self._config.path} for each in SHARED}
        return frozenset(self.paths().keys() & shared.union(places(self._config)))


class RunningIssuer(IssuerEndpoints, UpstreamPageMethod):
    """A running authorization server, in one event loop.

    It's also an auth method of the guard. It verifies its own tokens without network requests. It checks once a minute,
    and after each revocation, that the grant of a token is still valid.

    Users also sign in to the server's own pages, by name and password or with an upstream, and get the scopes that they
    could grant to a client. Like a grant, the cookie identifies the account and its state at login. The account and its
    scopes are looked up again for each verdict.
    """

    recalls = True
    guessable = False

    def __init__(self, config: IssuerConfig, services: Services, name: str) -> None:
        vault = Vault(services)
        self.resource: str = config.audience
        super().__init__(config, vault)
        self._tickets = Tickets(vault, config.base)
        self._rules = TokenRules(config.url, (self.resource,), config.implied)
        # The client that providers see; no other client has the issuer's identifier as its id.
        self._pages = OAuthClient(config.url, "The pages of this server")
        self.by_password: bool = config.passwords is not None
        if isinstance(config.passwords, UserFile):
            self.outages: tuple[LogOnce, ...] = (config.passwords.outage,)
        self.logins: Mapping[str, RedirectTarget] = config.upstreams
        self.scopes: tuple[str, ...] = config.scopes
        self.signing: TokenSigner = TokenSigner(vault)
        clients = Clients(config, vault)
        self._token = TokenEndpoints(config, vault, self.signing, clients)
        self._authorize = AuthorizationEndpoint(
            config,
            clients,
            vault,
            self._token,
            throttle=LoginThrottle(config.passwords, vault),
            tickets=self._tickets,
            brand=lambda: brand(name, self.icon),
            consent_limiter=vault.limiter("consent", CONSENT_RATE),
        )
        self._recent_users: Recent[str, User | None] = Recent(_MAX_RECENT_USERS)
        """Principal id -> the user in the most recent credential, or None for clients that act for themselves."""
        self._announcements = 0
        """Number of announced revocations."""

    @override
    async def prefetch(self) -> None:
        """See `AuthMethod.prefetch`."""
        upstreams = (each for each in self._config.upstreams.values() if isinstance(each, Prefetchable))
        await prefetch_all([*self._token.clients.identity_keys.values(), *upstreams])

    # AuthMethod

    @override
    async def identify(self, credential: str) -> Identity | None:
        """Return the principal of one of our tokens."""
        found = await self.examine(credential)
        return found if isinstance(found, Identity) else None

    @override
    async def examine(self, credential: str) -> Identity | Rejection:
        """Return the principal of one of our tokens, or why it isn't valid."""
        try:
            claims = await self._token.read(credential)
            found = judge(claims, self._rules, self._vault.clock())
            if isinstance(found, Rejection):
                return found
            user = await self._user_of(claims)
            if user is False:
                return Rejection("The token was revoked, or its user can no longer sign in.", is_genuine=True)
            self._remember_user(found.principal.id, user if isinstance(user, User) else None)
        except InvalidToken as exc:
            return exc.rejection()
        except LocalError as exc:
            raise Unavailable("The store isn't available. Try again later.") from exc
        return found

    async def _user_of(self, claims: Claims) -> User | bool:
        """See `TokenEndpoints.user_of`. Repeats the check if a revocation was announced while it ran."""
        for _ in range(_TRIES):
            announcements = self._announcements
            user = await self._token.user_of(claims)
            if announcements == self._announcements:
                return user
        raise Unavailable("Too many changes at the moment. Try again later.")

    def _remember_user(self, id: str, user: User | None) -> None:
        before = self._recent_users.get(id)
        if before is not None and self._config.current_user(before) is None:
            # The password has changed, so close earlier streams, even if the user has already signed in again.
            self._revoked_since_epoch.add(id)
        self._recent_users.keep(id, user)

    @override
    def holds(self, id: str) -> bool:
        """Return whether a principal may still have a valid token. After one is revoked, return False for a moment,
        which closes all streams. Clients with other valid tokens reconnect.
        """
        if not super().holds(id) or id not in self._recent_users:
            return False
        user = self._recent_users[id]
        return user is None or self._config.current_user(user) is not None

    @override
    def count(self) -> int:
        """Return the number of accounts with a password."""
        passwords = self._config.passwords
        return len(passwords.users) if isinstance(passwords, UserFile) else 0

    @override
    def rights(self) -> Rights | None:
        """See `AuthMethod.rights`."""
        config, passwords = self._config, self._config.passwords
        elsewhere = config.upstreams or config.identities or type(config.provider) is not Provider
        if elsewhere or not isinstance(passwords, UserFile):
            return None
        users = passwords.users.values()
        named = {*config.scopes, *(scope for each in users for scope in each.scopes)}
        named |= {scope for each in config.clients.values() for scope in each.scopes}
        scopes = scopes_of({"scope": list(named)}, config.implied) | (named & {EVERYTHING})
        return Rights(scopes, frozenset(group for each in users for group in each.groups))

    @override
    def epoch(self) -> int:
        """Return a number that changes when a grant is revoked on any worker, or an account is removed."""
        passwords = self._config.passwords
        return super().epoch() + self.signing.epoch + (0 if passwords is None else passwords.epoch())

    @override
    def revocation_id(self, principal: Principal) -> str:
        """Return the ids by which the token can be revoked. See `AuthMethod.revocation_id`."""
        if principal.issuer != self._config.url:
            return ""
        named = {name: principal.claims[name] for name in _REVOCABLE if name in principal.claims}
        return f"{self._config.url} {encode(named).decode()}"

    @override
    async def is_revoked(self, revocation_id: str) -> bool:
        """See `AuthMethod.is_revoked`."""
        issuer, _, named = revocation_id.partition(" ")
        if issuer != self._config.url:
            return False
        return await self._token.user_of(decode_object(named)) is False

    @override
    def _on_announcement(self, data: bytes) -> None:
        self._announcements += 1
        super()._on_announcement(data)

    # PageMethod

    @override
    async def admit(self, request: HttpRequest, name: str, password: str) -> tuple[bytes, bytes]:
        """See `PageMethod.admit`."""
        user = await self._authorize.check_password(request, name, password)
        # `recall` reads the rest from the accounts, and browsers reject large cookies.
        return pack(replace(user, scopes=(), groups=())), self._tickets.keep_device(name)

    @override
    def forget(self) -> bytes:
        """See `PageMethod.forget`. The consent page asks for the password again."""
        return self._tickets.forget()

    @override
    async def handle_callback(self, request: HttpRequest, pending: PendingLogin, callback: Callback) -> Response:
        """Handle an upstream's callback after consent, or to one of our pages."""
        if pending.authorization is not None:
            return await self._authorize.handle_callback(request, pending, pending.authorization, callback)
        return await super().handle_callback(request, pending, callback)

    @override
    async def finish_login(self, login: str, callback: Callback) -> tuple[bytes, float]:
        """See `UpstreamPageMethod.finish_login`."""
        user = await self._config.from_upstream(login, callback)
        return pack(replace(user, groups=())), inf  # small enough for a cookie

    @override
    async def recall(self, kept: bytes) -> Identity | None:
        """See `PageMethod.recall`."""
        before = read(kept, User)
        if before is None or (user := self._config.current_user(before)) is None:
            return None
        wanted = self._config.existing_scopes().union(user.scopes)
        granted = set(await self._config.grantable(user, self._pages, tuple(sorted(wanted))))
        scopes = scopes_of({"scope": list(granted)}, self._config.implied)
        # A user gets `*` only if no scope was denied.
        if EVERYTHING in granted and granted >= wanted:
            scopes |= {EVERYTHING}
        claims = await self._config.claims(user, self._pages)
        # The account may have been removed in the meantime, and the result is cached.
        if self._config.current_user(before) != user:
            return None
        said = {**claims, "iss": self._config.url, "sub": user.subject}
        principal = Principal(user.subject, self._config.url, scopes=scopes, claims=said)
        self._remember_user(principal.id, user)
        return Identity(principal, self._rules.believed)

    # HTTP

    @override
    def endpoints(self) -> Paths:
        """See `IssuerEndpoints.endpoints`."""
        ends: dict[str, Mapping[str, Handler]] = {
            AUTHORIZE: {"GET": self._authorize.get, "POST": self._authorize.post},
            TOKEN: {"POST": self._token.post},
            REVOKE: {"POST": self._token.revoke},
            INTROSPECT: {"POST": self._token.introspect},
            KEYS: {"GET": self._keys},
        }
        if self._config.registration:
            ends[REGISTER] = {"POST": self._token.clients.register}
        return {**ends, **self.callbacks()}

    @override
    async def metadata(self, request: HttpRequest) -> Response:
        """See `IssuerEndpoints.metadata`."""
        return Response(encode(metadata(self._config)), 200, _PUBLIC)

    async def _keys(self, request: HttpRequest) -> Response:
        return Response(encode(await self.signing.public()), 200, _PUBLIC)


@suggest_keywords
def issuer(  # noqa: PLR0913  the options of an issuer
    url: str,
    *,
    users: LoginMethod | Sequence[LoginMethod],
    clients: Sequence[OAuthClient] = (),
    audience: str = "",
    resources: Names = (),
    scopes: Names = (),
    scope_descriptions: Mapping[str, str] | None = None,
    scope_includes: Mapping[str, Names] | None = None,
    registration: bool = True,
    metadata_documents: bool = True,
    provider: Provider | None = None,
) -> Issuer:
    """Make this server an OAuth 2.1 authorization server (draft-ietf-oauth-v2-1) that issues its own tokens.

    MCP clients connect without setup: a client describes itself at a URL or registers, the user signs in and consents
    in a browser, and the client gets a token. Users come from a file managed by ``millstream users``, from an upstream,
    or from an organization's identity provider.

    Args:
        url: The server's public URL, without the path of the MCP endpoint: ``https://mcp.example.com``. It's also the
            exact issuer identifier.
        users: Who can sign in: ``auth.users(file="users.json")``, an `upstream`, an `identity_provider`, or a list.
        clients: Clients that don't need to register, from `client`.
        audience: URL of the MCP endpoint, by default `url` and the endpoint's path, ``https://mcp.example.com/mcp``.
        resources: URLs of other servers that it can issue tokens for.
        scopes: Scopes that every user gets and every caller needs.
        scope_descriptions: Descriptions of scopes for users: ``{"orders:write": "order books"}``.
        scope_includes: Mapping of a scope to the scopes that it includes.
        registration: Whether clients can register themselves. Clients with a metadata document don't need to.
        metadata_documents: Whether clients can describe themselves at a URL, which this server fetches. Set it to False
            if the server has no access to the internet, so that clients such as Claude Code register instead.
        provider: Custom decisions. See `millstream.auth.providers`.

    Raises:
        ValueError: An argument is invalid.

    Example:
        ``Server("shop", auth=auth.issuer("https://mcp.example.com", users=auth.users(file="users.json")))``
    """
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or parts.path.endswith("//")
        or "?" in url
        or "#" in url
    ):
        raise ValueError(
            f"The issuer must be a URL without a query or fragment, such as https://mcp.example.com, not {url!r}."
        )
    passwords, upstreams, identities = login_methods_of(url, users)
    if strange := [each for each in cast("Sequence[object]", clients) if not isinstance(each, OAuthClient)]:
        raise TypeError(f"clients must be a list of auth.client(…), but {strange[0]!r} isn't one.")
    config = IssuerConfig(
        url=url,
        audience=audience,
        resources=several("resources", resources),
        scopes=check_scopes(several("scopes", scopes)),
        described=dict(scope_descriptions or {}),
        implied=inclusions(scope_includes),
        passwords=passwords,
        upstreams=upstreams,
        clients={each.id: each for each in clients},
        registration=registration,
        provider=provider or Provider(),
        metadata_documents=metadata_documents,
        identities=identities,
    )
    for each in (audience or url, *resources):
        rules_of(url, each, scopes, scope_includes)
    return Issuer(config)
