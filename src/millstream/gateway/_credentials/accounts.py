"""Accounts that users connect to an upstream: their own tokens from its authorization server (OAuth 2.1 with PKCE).

A connection belongs to a principal, an upstream, and the upstream's URL. It's created and removed only on the
connections page; a call without one asks its user to open the page. Everything stored is sealed.
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

from msgspec import Struct, structs

from millstream import Cancelled, Context, Declined
from millstream._override import override
from millstream.auth import pages
from millstream.auth.pages import Vault, new_state
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    MemoryTokenStore,
    OAuth,
    Registration,
    StoredCredentials,
    Tokens,
)
from millstream.client.oauth import Outbound, PendingAuthorization, Proofs, fetch, parse_redirect, wants_nonce
from millstream.gateway._credentials import PerUserOAuth
from millstream.gateway._credentials.source import (
    LinkAuth,
    LinkCaller,
    UpstreamCredentials,
    logger,
    outbound_for,
)
from millstream.gateway._credentials.tokens import ISSUER_TIMEOUT, SharedTokens, StoredGrant, make_grant
from millstream.gateway._results import call_error
from millstream.http import Url, parse_url
from millstream.parts import Call, Host, HttpRequest, Limiter, Rate, Response, Route, header_lines, query_value, refusal
from millstream.protocol import declares, encode, notification_message

PAGE = "/connections"
CALLBACK = "/connections/callback"
METADATA = "/connections/client.json"
_CONNECTION_SECONDS = 180 * 86_400.0
"""Seconds that a connection is kept after its last refresh."""
_REGISTRATION_SECONDS = 86_400.0
"""Seconds for which a client registration is reused."""
_DEMAND_SECONDS = 900.0
"""Seconds for which the challenge of a denied call is stored."""
_MAX_LISTERS = 16
_MAX_CHALLENGE = 4096
_ROUND_TIMEOUT = 20.0
"""Seconds that a call of the per-request era waits after its user agreed to open the page. The call is one HTTP
request, and its client may time out.
"""
_URL_MODE: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {"elicitation": {"url": {}}}
_CLIENT_KIND = b"gateway client"
_PROBE = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


class Demand(Struct, frozen=True):
    """Status and challenge of a denied call."""

    status: int = 401
    challenge: str = ""


class PersonalCredentials(UpstreamCredentials):
    """The connections of all users to one upstream."""

    personal = True

    def __init__(self, upstream: str, forward: Sequence[str], url: Url, options: PerUserOAuth, host: Host) -> None:
        """Create the credentials and read the secret.

        Args:
            upstream: Name of the upstream.
            forward: See `UpstreamCredentials`.
            url: URL of the upstream.
            options: The operator's options.
            host: The running server.

        Raises:
            LocalError: A secret is missing.
        """
        super().__init__(upstream, forward)
        self.url: Url = parse_url("http" + str(url).removeprefix("ws")) if url.scheme in ("ws", "wss") else url
        self.options: PerUserOAuth = options
        self._services = host.services
        self._vault = Vault(host.services)
        secret = options.client_secret
        self._secret = "" if secret is None else secret.read(f"the upstream {upstream!r}")
        self._outbound: Outbound = outbound_for(url, private_addresses=options.private_addresses)
        self._proofs = Proofs()
        self.base: str = _configured_base(host)
        """Base URL of this server, if its sign-in configures one."""
        # Another URL or client id is another connection.
        parts = (upstream, str(url), options.issuer, options.client_id)
        self._id = sha256("\n".join(parts).encode()).hexdigest()[:32]
        self._tokens = SharedTokens(
            host.services,
            f"connection:{self._id}:",
            ttl=_CONNECTION_SECONDS,
            lossy=False,
            on_change=self._on_change,
            on_interruption=self._on_interruption,
            discard=self._discard,
        )
        if host.services.secrets.source in ("store", "process"):
            logger.warning(
                "Accounts that users connect to upstream %s are sealed with a key that %s. Set MILLSTREAM_SECRET_KEY.",
                upstream,
                "is stored next to them" if host.store.shared else "is lost when this process ends",
            )
        self._waiting: dict[str, set[asyncio.Event]] = {}
        """Owner -> calls that wait for this user to connect."""
        self._list_failures: dict[str, float] = {}
        """Owner -> time of the last failure to read the lists with this connection."""
        self._user_change = asyncio.Event()
        """Set after a user has connected or disconnected."""

    @override
    async def close(self) -> None:
        """Finish running tasks."""
        await self._tokens.close()

    def _on_change(self, owner: str) -> None:
        for event in self._waiting.get(owner, ()):
            event.set()
        self._user_change.set()
        self.on_change(owner)

    def _on_interruption(self) -> None:
        """Make all calls that wait for a user check the store."""
        for events in self._waiting.values():
            for event in events:
                event.set()
        self._user_change.set()

    # Lists

    @override
    async def lister(self) -> str:
        """Return the link key of a connected user, waiting for one if necessary."""
        while True:
            self._user_change.clear()
            listers = await self._listers()
            for owner in sorted(listers, key=lambda each: self._list_failures.get(each, 0)):
                if await self._tokens.load(owner) is not None:
                    return owner
            await self._user_change.wait()

    @override
    def avoid_lister(self, link_key: str) -> None:
        """See `UpstreamCredentials.avoid_lister`."""
        self._list_failures[link_key] = time.monotonic()
        if len(self._list_failures) > _MAX_LISTERS:
            del self._list_failures[min(self._list_failures, key=self._list_failures.__getitem__)]

    @override
    def auth(self, link_key: str) -> LinkAuth:
        """See `UpstreamCredentials.auth`."""
        return LinkAuth(self, self._callers.get(link_key) or LinkCaller({}, link_key.partition("\n")[0]))

    async def _listers(self) -> list[str]:
        return await self._vault.get(f"connection-lister:{self._id}", list[str]) or []

    async def _save_lister(self, owner: str) -> None:
        """Store who connected last, because the lists are read with one of these connections."""
        owners = [owner, *(each for each in await self._listers() if each != owner)][:_MAX_LISTERS]
        await self._vault.put(f"connection-lister:{self._id}", owners, _CONNECTION_SECONDS)
        self._user_change.set()

    # Calls

    @override
    def _identify(self, call: Call) -> tuple[str, LinkCaller]:
        principal = call.principal
        if principal is None:
            raise call_error(
                call,
                f"The server {self.upstream!r} behind this gateway requires your account there, but this call is "
                "anonymous. Sign in to this server first.",
            )
        owner = owner_of(principal.id)
        return owner, LinkCaller({}, owner)

    @override
    async def prepare(self, call: Call) -> None:
        """See `UpstreamCredentials.prepare`."""
        owner, _ = self._identify(call)
        grant = await self._tokens.load(owner)
        if grant is None or grant.has_ended:
            await self._ask(call, owner, grant, f"The server {self.upstream!r} requires your account there.")

    @override
    async def recover(self, call: Call, denied: AccessDenied) -> bool:
        """See `UpstreamCredentials.recover`."""
        lacks_scope = denied.status == 403 and "insufficient_scope" in denied.challenge
        if not lacks_scope and denied.status != 401:
            return False
        if lacks_scope and self.options.scope:
            return await super().recover(call, denied)  # the user can't grant more than the operator requests
        owner, _ = self._identify(call)
        demand = Demand(denied.status, denied.challenge[:_MAX_CHALLENGE])
        await self._vault.put(f"connection-wanted:{self._id}:{owner}", demand, _DEMAND_SECONDS, lossy=True)
        reason = "requires more permissions for this" if lacks_scope else "no longer accepts your connection"
        await self._ask(call, owner, await self._tokens.load(owner), f"The server {self.upstream!r} {reason}.")
        return True

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """Return the token of the user's connection, renewed if it's about to expire."""
        owner = caller.owner
        grant = await self._tokens.get(owner, self._renew) if owner else None
        if grant is None:
            raise AccessDenied(
                f"The upstream {self.upstream!r} isn't connected for this user. Connect it at /connections.",
                401,
            )
        return self._proofs.authorize(grant.tokens, method, url)

    @override
    async def replace_refused(self, caller: LinkCaller, sent: Mapping[str, str]) -> bool:
        """Renew the token that was refused."""
        return await self._tokens.replace(caller.owner, sent.get("Authorization", "").partition(" ")[2], self._renew)

    @override
    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """See `Auth.learn_nonce`."""
        return self._proofs.learn(url, nonce) and wants_nonce(challenge)

    # Questions

    async def _ask(self, call: Call, owner: str, before: StoredGrant | None, reason: str) -> None:
        """Ask the user to connect, and wait until they have.

        Raises:
            ToolError, ProtocolError: The client can't ask, or the user hasn't connected.
            InputRequired: The client will ask, and then repeat the call.
        """
        page = self.page_of(call)
        instruction = (
            f"Open {page} and connect it." if page else f"Open {PAGE} of this server in a browser and connect it."
        )
        revision = call.revision
        if not page or "url" not in revision.elicitation_modes or not declares(call.client.capabilities, _URL_MODE):
            raise call_error(call, f"{reason} {instruction} Then call again.")
        id = secrets.token_urlsafe(16)
        event = asyncio.Event()
        waiting = self._waiting.setdefault(owner, set())
        waiting.add(event)
        try:
            try:
                await Context(call).elicit_url(
                    f"{reason} {instruction}", page, id=id, key=f"millstream.connect.{self.upstream}"
                )
            except (Declined, Cancelled):
                raise call_error(call, f"{reason} You haven't connected it. {instruction}") from None
            seconds = self._services.settings.input_timeout
            limit = seconds if revision.handshake else min(seconds, _ROUND_TIMEOUT)
            if not await self._has_changed(owner, before, event, limit):
                raise call_error(call, f"{reason} It isn't connected yet. {instruction} Then call again.")
            if revision.elicitation_ids:
                await call.send_to_caller(
                    notification_message("notifications/elicitation/complete", {"elicitationId": id})
                )
        finally:
            waiting.discard(event)
            if not waiting and self._waiting.get(owner) is waiting:
                del self._waiting[owner]

    async def _has_changed(self, owner: str, before: StoredGrant | None, event: asyncio.Event, seconds: float) -> bool:
        old = "" if before is None else before.token
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event.clear()
                    found = await self._tokens.load(owner)
                    if found is not None and found.token != old:
                        return True
                    await event.wait()
        except TimeoutError:
            return False

    def page_of(self, call: Call) -> str:
        """Return the URL of the connections page as the caller can reach it; empty if unknown."""
        base = self.base
        if not base and call.headers is not None:
            scheme, root = getattr(call.origin, "scheme", ""), getattr(call.origin, "root_path", "")
            scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
            authority = call.headers.get(b"host", b"").decode("latin-1")
            base = f"{scheme}://{authority}{root}" if scheme and authority else ""
        return base + PAGE if base else ""

    # The page

    async def connection(self, owner: str) -> StoredGrant | None:
        """Return the connection of a user."""
        return await self._tokens.load(owner)

    async def begin(self, owner: str, base: str) -> PendingAuthorization:
        """Return the authorization request for a user.

        Args:
            owner: See `owner_of`.
            base: Base URL of this server for the user's browser.

        Raises:
            ClientError: The upstream and its authorization server are incompatible, or can't be reached.
        """
        grant = await self._tokens.load(owner)
        key = self._registration_key(base)
        registrations = await self._registrations(key)
        oauth, store = self._client(base, grant, registrations)
        demand = await self._demand(owner)
        async with asyncio.timeout(ISSUER_TIMEOUT):
            request = await oauth.ask(self.url, demand.status, demand.challenge)
        if (found := store.load().registrations) != registrations:
            sealed = self._vault.seal(_CLIENT_KIND, found, key.encode())
            await self._services.store.kv.put(key, sealed.encode(), _REGISTRATION_SECONDS)
        return request

    async def finish(self, owner: str, base: str, request: PendingAuthorization, answer: Mapping[str, str]) -> None:
        """Create a user's connection from the redirect of the login.

        Raises:
            ClientError: The redirect doesn't match the request, or the user or the issuer declined.
        """
        oauth, store = self._client(base, None, {request.issuer.issuer: request.who})
        now = time.time()
        try:
            async with asyncio.timeout(ISSUER_TIMEOUT):
                await oauth.exchange_code(self.url, request, answer)
        except AccessDenied:
            # The authorization server may have dropped this client, so the next attempt registers again.
            await self._services.store.kv.delete(self._registration_key(base))
            raise
        tokens = store.load().tokens[str(self.url)]
        registration = Registration() if self.options.client_id else request.who
        await self._save_lister(owner)  # before announcing the connection
        await self._tokens.put(owner, _make_grant(tokens, registration, now=now))
        await self._services.store.kv.delete(f"connection-wanted:{self._id}:{owner}")

    async def disconnect(self, owner: str) -> bool:
        """Remove the connection of a user. Return whether the authorization server has revoked it, too (RFC 7009)."""
        grant = await self._tokens.remove(owner)
        return grant is not None and await self._discard(owner, grant)

    async def _discard(self, owner: str, grant: StoredGrant) -> bool:
        """Revoke tokens that are no longer used."""
        oauth, _ = self._client("", grant, {})
        try:
            async with asyncio.timeout(ISSUER_TIMEOUT):
                return await oauth.sign_out(self.url)
        except (TimeoutError, ClientError):
            return False

    async def _demand(self, owner: str) -> Demand:
        """Return the last challenge for this user, or the one for an unauthenticated client."""
        demand = await self._vault.get(f"connection-wanted:{self._id}:{owner}", Demand)
        if demand is not None:
            return demand
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        try:
            reply = await fetch("POST", str(self.url), headers=headers, body=_PROBE)
        except ClientError as exc:
            if isinstance(exc, AccessDenied):
                raise
            raise ConnectFailed(
                f"The upstream {self.upstream!r} can't be reached at the moment. Try again later."
            ) from exc
        reply.discard()
        return Demand(401, reply.header(b"www-authenticate")[:_MAX_CHALLENGE])

    # Tokens

    async def _renew(self, old: StoredGrant | None) -> StoredGrant | None:
        """Return the connection with fresh tokens, or None if it has ended."""
        if old is None or not old.tokens.refresh_token:
            # Keep it: the refusal may be the upstream's mistake, and the user would have to connect again.
            return None if old is None or old.has_ended else old
        oauth, store = self._client("", old, {})
        now = time.time()
        if not await oauth.refresh(self.url):
            return None
        return _make_grant(store.load().tokens[str(self.url)], old.registration, now=now)

    def _client(
        self, base: str, grant: StoredGrant | None, registrations: Mapping[str, Registration]
    ) -> tuple[OAuth, MemoryTokenStore]:
        options, store = self.options, MemoryTokenStore()
        tokens: dict[str, Tokens] = {}
        all_registrations = dict(registrations)
        if grant is not None:
            tokens[str(self.url)] = grant.tokens
            if grant.registration.client_id and grant.tokens.issuer not in all_registrations:
                all_registrations[grant.tokens.issuer] = grant.registration
        store.save(StoredCredentials(all_registrations, tokens))
        own_metadata = base + METADATA if base.startswith("https://") else ""
        oauth = OAuth(
            store=store,
            client_id=options.client_id,
            client_secret=self._secret,
            name="Millstream gateway",
            client_metadata_url=options.client_metadata_url or own_metadata,
            scope=" ".join(options.scope),
            redirect_uri=base + CALLBACK,
        )
        if options.issuer:
            oauth.for_issuer(options.issuer)
        return (oauth if self._outbound.dial is None else oauth.with_connector(self._outbound.dial)), store

    def _registration_key(self, base: str) -> str:
        return f"gateway-client:{sha256(f'{self._id} {base}{CALLBACK}'.encode()).hexdigest()}"

    async def _registrations(self, key: str) -> dict[str, Registration]:
        raw = await self._services.store.kv.get(key) or b""
        return self._vault.open(_CLIENT_KIND, raw.decode("latin-1"), dict[str, Registration], key.encode()) or {}


def _make_grant(tokens: Tokens, registration: Registration, *, now: float) -> StoredGrant:
    grant = make_grant(tokens, registration, now=now)
    # Without a refresh token, the access token is used until it expires.
    return grant if tokens.refresh_token else structs.replace(grant, renew_at=tokens.expires_at)


def owner_of(principal_id: str) -> str:
    """Return the owner key of a user's connections."""
    return sha256(principal_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _configured_base(host: Host) -> str:
    """Return the base URL of this server, if its sign-in configures one."""
    guard = host.guard
    resource = next((each.resource for each in guard.methods if each.resource), "") if guard is not None else ""
    return resource.rstrip("/").removesuffix(host.settings.path.rstrip("/")) if resource else ""


_TEMPLATE = Path(__file__).parent / "templates" / "connections.html"
_LOGIN_SECONDS = 600.0
_ANSWER_SECONDS = 120.0
_BROWSER_SECONDS = 8 * 3600.0
_MAX_FORM = 4096
_MAX_QUERY = 8192
_PENDING = "connection-pending"
_LOGIN_RATE = Rate(60, 60)
"""Maximum logins per user and minute, because each one contacts other servers."""
_MALFORMED_FORM = refusal(400, "The form is malformed. Reload the page.")
_LOGIN_OVER = (
    "This sign-in took more than ten minutes, was already finished, or began in another browser or with another "
    "account. Connect again."
)


class PendingConnection(Struct, frozen=True):
    """A login that is in progress at an authorization server."""

    upstream: str
    owner: str
    browser: str
    base: str
    authorization: PendingAuthorization


class AnsweredConnection(Struct, frozen=True):
    """The answer to a login, stored until the user's own browser fetches it."""

    pending: PendingConnection
    answer: dict[str, str]


class _Row(Struct, frozen=True):
    """One upstream, as shown on the page."""

    name: str
    host: str
    connected: bool
    ended: bool
    scopes: tuple[str, ...]


class ConnectionsPage:
    """The page of one running server, for all upstreams that users connect to individually.

    A signed-in user connects and disconnects accounts here. A login returns in two steps. The callback is a cross-site
    request without the cookie of the user's sign-in, so it only stores the answer for the browser that began the login.
    That browser then opens the page with both cookies, and the answer is used only for the user who began the login.
    """

    def __init__(self, host: Host, connections: Mapping[str, PersonalCredentials], *, server: str) -> None:
        """Create the page; `serve` adds its paths.

        Args:
            host: The running server.
            connections: Connections by name of the upstream.
            server: Name of the server.
        """
        self._host = host
        self._connections = connections
        self._server = server
        self._vault = Vault(host.services)
        self._login_limiter = Limiter("connect", _LOGIN_RATE)

    def serve(self) -> None:
        """Add the paths of the page."""
        routes = self._host.routes
        routes.add(PAGE, Route({"GET": self.show, "POST": self.submit}, reserved=True))
        # The redirect comes from another site, without the cookie of the user's sign-in.
        routes.add(CALLBACK, Route({"GET": self.handle_callback}, public=True, reserved=True))
        routes.add(METADATA, Route({"GET": self.describe}, public=True, reserved=True))

    # The page

    async def show(self, request: HttpRequest) -> Response:
        """Handle `GET /connections`, including the last step of a login."""
        handle = query_value("finish", request.query)
        if handle and request.method == "GET":
            return await self._finish(request, handle)
        return await self._page(request, first=query_value("connect", request.query))

    async def submit(self, request: HttpRequest) -> Response:
        """Handle `POST /connections`: connect or disconnect an upstream."""
        principal = request.principal
        if not pages.is_same_origin(request):
            return refusal(403, pages.cross_origin_text(request))
        if principal is None or len(request.body) > _MAX_FORM:
            return _MALFORMED_FORM
        try:
            form = parse_qs(request.body.decode("latin-1"), max_num_fields=4, keep_blank_values=True)
        except ValueError:
            return _MALFORMED_FORM
        name, action = form.get("upstream", [""])[-1], form.get("action", [""])[-1]
        connection = self._connections.get(name)
        if connection is None or action not in ("connect", "disconnect"):
            return _MALFORMED_FORM
        owner = owner_of(principal.id)
        if action == "connect":
            return await self._begin(request, name, connection, owner)
        await connection.disconnect(owner)
        return self._redirect_to_page(request)

    async def _begin(self, request: HttpRequest, name: str, connection: PersonalCredentials, owner: str) -> Response:
        if self._login_limiter.take(owner) > 0:
            return await self._page(request, "Too many attempts. Wait a minute, then try again.", 429)
        base = self._base(request, connection)
        if not pages.is_at_host(request, base):
            return await self._page(request, f"You can only connect accounts at {base}{PAGE}. Open that address.", 400)
        secure = base.startswith("https://")
        browser, cookie = pages.browser_cookie(request, _cookie_name(base), _BROWSER_SECONDS, secure=secure)
        try:
            authorization = structs.replace(await connection.begin(owner, base), state=new_state(owner))
        except TimeoutError:
            return await self._page(request, f"{name} or its authorization server took too long. Try again.", 504)
        except ClientError as exc:
            return await self._page(request, pages.quote_foreign(str(exc)), 502)
        pending = PendingConnection(name, owner, owner_of(browser), base, authorization)
        await self._vault.put_pending(_PENDING, authorization.state, pending, _LOGIN_SECONDS)
        return pages.redirect_page(authorization.url, f"Continue to {connection.url.host}", cookie)

    async def handle_callback(self, request: HttpRequest) -> Response:
        """Handle `GET /connections/callback`: store the answer of an authorization server. Each state is valid once."""
        try:
            answer = parse_redirect("?" + request.query[:_MAX_QUERY].decode("latin-1"))
        except ClientError:
            answer = {}
        state = answer.get("state", "")
        pending = (
            await self._vault.take_pending(_PENDING, state, PendingConnection)
            if state and request.method == "GET"
            else None
        )
        if pending is None or not self._is_browser_of(request, pending):
            return pages.not_signed_in_page(request, PAGE, _LOGIN_OVER, 403)
        handle = f"{state.partition('.')[0]}.{secrets.token_urlsafe(32)}"
        await self._vault.put_pending(_PENDING, handle, AnsweredConnection(pending, answer), _ANSWER_SECONDS)
        return pages.continue_page(request, f"{PAGE}?finish={handle}", title="One moment")

    async def _finish(self, request: HttpRequest, handle: str) -> Response:
        """Create the connection, if the browser and the user are those that began the login."""
        found = await self._vault.take_pending(_PENDING, handle, AnsweredConnection)
        principal = request.principal
        if found is None or principal is None:
            return await self._page(request, _LOGIN_OVER, 403)
        pending = found.pending
        connection = self._connections.get(pending.upstream)
        if connection is None or pending.owner != owner_of(principal.id) or not self._is_browser_of(request, pending):
            return await self._page(request, _LOGIN_OVER, 403)
        try:
            await connection.finish(pending.owner, pending.base, pending.authorization, found.answer)
        except TimeoutError:
            return await self._page(
                request, f"{pending.upstream} isn't connected, because the sign-in timed out. Try again.", 504
            )
        except ClientError as exc:
            return await self._page(
                request, f"{pending.upstream} isn't connected. {pages.quote_foreign(str(exc))}", 403
            )
        return self._redirect_to_page(request)

    async def describe(self, request: HttpRequest) -> Response:
        """Handle `GET /connections/client.json`: the client metadata document of this server (CIMD)."""
        base = self._base(request, next(iter(self._connections.values())))
        document = {
            "client_id": base + METADATA,
            "client_name": self._server,
            "client_uri": base or None,
            "redirect_uris": [base + CALLBACK],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
            "application_type": "web",
        }
        return Response(
            encode(document), 200, header_lines(content_type="application/json", cache_control="max-age=300")
        )

    # Helpers

    def _is_browser_of(self, request: HttpRequest, pending: PendingConnection) -> bool:
        browser = owner_of(pages.get_cookie(request, _cookie_name(pending.base)))
        return hmac.compare_digest(browser, pending.browser)

    async def _page(self, request: HttpRequest, notice: str = "", status: int = 200, *, first: str = "") -> Response:
        principal = request.principal
        if principal is None:
            text = "Sign in to this server first: a connection belongs to a user."
            return pages.not_signed_in_page(request, "/sign-in", text, 403)
        owner = owner_of(principal.id)
        rows = [await self._row(name, each, owner) for name, each in self._connections.items()]
        rows.sort(key=lambda row: row.name != first)
        return pages.render(
            _TEMPLATE, status, root=f"{request.root_path}/", images=pages.IMAGES, server=self._server, notice=notice,
            rows=rows, wanted=first, who=_name(principal.claims.get("name")) or principal.subject,
        )  # fmt: skip

    async def _row(self, name: str, connection: PersonalCredentials, owner: str) -> _Row:
        grant = await connection.connection(owner)
        if grant is None:
            return _Row(name, connection.url.authority, connected=False, ended=False, scopes=())
        scopes = tuple(grant.tokens.scope.split())
        return _Row(name, connection.url.authority, connected=True, ended=grant.has_ended, scopes=scopes)

    @staticmethod
    def _base(request: HttpRequest, connection: PersonalCredentials) -> str:
        """Return the base URL of this server, from its sign-in or from the browser's request."""
        if connection.base:
            return connection.base
        host = request.headers.get(b"host", b"").decode("latin-1")
        return f"{request.scheme}://{host}{request.root_path}"

    @staticmethod
    def _redirect_to_page(request: HttpRequest) -> Response:
        """Redirect to the page itself, so that a reload doesn't repeat the request."""
        return Response(b"", 303, header_lines(location=f"{request.root_path}{PAGE}", cache_control="no-store"))


def _cookie_name(base: str) -> str:
    return f"{'__Host-' if base.startswith('https://') else ''}millstream-browser"


def _name(claim: object) -> str:
    return claim if isinstance(claim, str) and claim.isprintable() and len(claim) < 128 else ""
