"""Accounts that users connect to an upstream: their own tokens from its authorization server (OAuth 2.1 with PKCE).

A connection belongs to a principal, an upstream, and the upstream's URL. It's created on the connections page,
and removed there, or once its grant has ended. A call without a connection asks the user to open the page. Everything
stored is sealed.
"""

import asyncio
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct, structs

from millstream import Cancelled, Context, Declined
from millstream._gateway.credentials.source import LinkCaller, digest_of, logger, outbound_for
from millstream._gateway.credentials.tokens import (
    ISSUER_TIMEOUT,
    MAX_LISTERS,
    StoredGrant,
    TokenCredentials,
    make_grant,
)
from millstream._gateway.errors import ClientRejected
from millstream._gateway.options.credentials import PerUserOAuth
from millstream._gateway.rules.results import call_error
from millstream._http.client.url import Url
from millstream._http.message import HttpRequest, Response, header_lines, query_value, refusal
from millstream._limits import Limiter, Rate
from millstream._override import override
from millstream._parts import WATCH, PartHost, Route
from millstream._protocol.metadata import declares
from millstream._protocol.principal import Principal
from millstream._server.calls.call import Call
from millstream._server.calls.vault import Vault, new_state
from millstream.auth import _pages as pages
from millstream.client import (
    AccessDenied,
    ClientError,
    ConnectFailed,
    MemoryTokenStore,
    OAuth,
    Registration,
    StoredCredentials,
    parse_url,
)
from millstream.client._oauth.endpoints import fetch, wants_nonce
from millstream.client._oauth.flow import PendingAuthorization
from millstream.client._oauth.loopback import parse_redirect
from millstream.protocol import encode, notification_message

PAGE = "/connections"
CALLBACK = "/connections/callback"
METADATA = "/connections/client.json"
_CONNECTION_SECONDS = 180 * 86_400.0
"""Seconds that a connection is kept after its last refresh."""
_REGISTRATION_SECONDS = 86_400.0
"""Seconds that a client registration is reused."""
_DEMAND_SECONDS = 900.0
"""Seconds that the challenge of a denied call is stored."""
_MAX_CHALLENGE = 4096
_ROUND_TIMEOUT = 20.0
"""Seconds that a call of the per-request era waits after its user agreed to open the page. The call is one HTTP
request, and its client may time out.
"""

_CLIENT_KIND = b"gateway client"
_PROBE = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


class PersonalCredentials(TokenCredentials):
    """The connections of all users to one upstream."""

    personal = True
    account = "each user's own"
    _ttl = _CONNECTION_SECONDS
    _lossy = False

    def __init__(self, upstream: str, forward: Sequence[str], url: Url, options: PerUserOAuth, host: PartHost) -> None:
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
        # Another URL or client id is another connection.
        self._id = digest_of("\n".join((upstream, str(url), options.issuer, options.client_id)))
        super().__init__(upstream, forward, host.services, f"connection:{self._id}:")
        self.url: Url = parse_url("http" + str(url).removeprefix("ws")) if url.scheme in ("ws", "wss") else url
        self.options: PerUserOAuth = options
        self.lists_from = options.lists_from
        secret = options.client_secret
        self._secret = "" if secret is None else secret.read(upstream)
        self._outbound = outbound_for(url, private_addresses=options.private_addresses)
        guard = host.guard
        resource = next((each.resource for each in guard.methods if each.resource), "") if guard is not None else ""
        self._base = resource.rstrip("/").removesuffix(host.settings.path.rstrip("/"))
        """Base URL of this server, if its sign-in configures one."""
        if host.services.secrets.source in ("store", "process"):
            logger.warning(
                "Accounts that users connect to upstream %s are sealed with a key that %s. Set MILLSTREAM_SECRET_KEY.",
                upstream,
                "is stored next to them" if host.store.shared else "is lost when this process ends",
            )
        self._waiting: dict[asyncio.Event, str] = {}
        """Event of a call whose user has to connect -> owner."""

    @override
    def _on_change(self, name: str) -> None:
        for event, owner in self._waiting.items():
            if name in ("", owner):
                event.set()
        self._lister_event.set()
        if name:
            self._list_failures.pop(name, None)
            self.on_change(name)

    # Lists

    @override
    async def _listers(self) -> list[str]:
        stored = await self._vault.get(f"connection-lister:{self._id}", list[str])
        owners = [digest_of(self.lists_from)] if self.lists_from else stored or []
        return [each for each in owners if await self.load(each) is not None]

    async def _change_listers(self, owner: str, *, connected: bool) -> None:
        """Remove an owner, or add it last, so a newer account doesn't change what other callers see."""
        key = f"connection-lister:{self._id}"
        listers = await self._vault.get(key, list[str]) or []
        if connected and owner not in listers:
            listers = [*listers, owner][:MAX_LISTERS]
        elif not connected:
            listers = [each for each in listers if each != owner]
        await self._vault.put(key, listers, _CONNECTION_SECONDS)

    # Calls

    @override
    def _identify(self, call: Call) -> LinkCaller:
        principal = call.principal
        if principal is None:
            raise call_error(
                call,
                f"The server {self.upstream!r} behind this gateway requires your own account, but this call is "
                "anonymous. Sign in to this server first.",
            )
        return LinkCaller(digest_of(principal.id))

    @override
    async def prepare(self, call: Call) -> None:
        """See `UpstreamCredentials.prepare`."""
        owner = self._identify(call).owner
        grant = await self.load(owner)
        if grant is None or grant.has_ended:
            await self._ask(call, owner, grant, f"The server {self.upstream!r} requires your own account.")

    @override
    async def recover(self, call: Call, denied: AccessDenied) -> bool:
        """See `UpstreamCredentials.recover`."""
        lacks_scope = denied.status == 403 and "insufficient_scope" in denied.challenge
        if not lacks_scope and denied.status != 401:
            return False
        if lacks_scope and self.options.scope:
            return await super().recover(call, denied)  # the user can't grant more than the operator requests
        owner = self._identify(call).owner
        demand = denied.status, denied.challenge[:_MAX_CHALLENGE]
        await self._vault.put(f"connection-wanted:{self._id}:{owner}", demand, _DEMAND_SECONDS, lossy=True)
        reason = "requires more permissions for this" if lacks_scope else "no longer accepts your connection"
        await self._ask(call, owner, await self.load(owner), f"The server {self.upstream!r} {reason}.")
        return True

    @override
    async def headers_of(self, caller: LinkCaller, method: str, url: str) -> Mapping[str, str]:
        """See `TokenCredentials.headers_of`."""
        found = await super().headers_of(caller, method, url)
        if not found:
            raise AccessDenied(
                f"The upstream {self.upstream!r} isn't connected for this user. Connect it at /connections.",
                401,
            )
        return found

    @override
    def learn_nonce(self, url: Url, nonce: str, challenge: str) -> bool:
        """See `Auth.learn_nonce`."""
        return self._proofs.learn(url, nonce) and wants_nonce(challenge)

    # Questions

    async def _ask(self, call: Call, owner: str, before: StoredGrant | None, reason: str) -> None:
        """Ask the user to connect and wait until they have.

        Raises:
            ToolError, ProtocolError: The client can't ask, or the user hasn't connected.
            InputRequired: The client will ask, and then repeat the call.
        """
        base = self.base_for(call.origin, call.headers or {})
        page = base and base + PAGE
        instruction = (
            f"Open {page} and connect it." if page else f"Open {PAGE} on this server in a browser and connect it."
        )
        revision = call.revision
        if not (
            page
            and "url" in revision.elicitation_modes
            and declares(call.client.capabilities, {"elicitation": {"url": {}}})
        ):
            raise call_error(call, f"{reason} {instruction} Then call again.")
        id = secrets.token_urlsafe(16)
        event = asyncio.Event()
        self._waiting[event] = owner
        try:
            try:
                await Context(call).elicit_url(
                    f"{reason} {instruction}", page, id=id, key=f"millstream.connect.{self.upstream}"
                )
            except (Declined, Cancelled):
                raise call_error(call, f"{reason} You haven't connected it. {instruction}") from None
            seconds = call.services.settings.input_timeout
            try:
                async with asyncio.timeout(seconds if revision.handshake else min(seconds, _ROUND_TIMEOUT)):
                    while (found := await self.load(owner)) is None or (before and found.token == before.token):
                        await event.wait()
                        event.clear()
            except TimeoutError:
                raise call_error(call, f"{reason} It isn't connected yet. {instruction} Then call again.") from None
            if revision.elicitation_ids:
                await call.send_to_caller(
                    notification_message("notifications/elicitation/complete", {"elicitationId": id})
                )
        finally:
            del self._waiting[event]

    def base_for(self, request: Any, headers: Mapping[bytes, bytes]) -> str:
        """Return the base URL of this server, from its sign-in or a request, or an empty string if unknown."""
        scheme = getattr(request, "scheme", "").replace("ws", "http")
        authority = headers.get(b"host", b"").decode("latin-1")
        return self._base or (f"{scheme}://{authority}{request.root_path}" if scheme and authority else "")

    # The page

    async def begin(self, owner: str, base: str) -> PendingAuthorization:
        """Return the authorization request for a user.

        Args:
            owner: Digest of the user's principal id.
            base: Base URL of this server for the user's browser.

        Raises:
            ClientError: The upstream and its authorization server are incompatible, or can't be reached.
        """
        grant = await self.load(owner)
        key = self._registration_key(base)
        raw = await self._vault.kv.get(key)
        registrations = self._vault.open(_CLIENT_KIND, raw, dict[str, Registration], key.encode()) or {}
        abandoned = await self._vault.get(f"connection-login:{self._id}:{owner}", str)
        if grant is not None and await self._is_unusable(grant.registration.client_id, abandoned):
            grant = structs.replace(grant, registration=Registration())
        registrations = {
            issuer: each
            for issuer, each in registrations.items()
            if not await self._is_unusable(each.client_id, abandoned)
        }
        oauth, store = self._client(base, grant, registrations)
        demand = await self._demand(owner)
        async with asyncio.timeout(ISSUER_TIMEOUT):
            request = await oauth.ask(self.url, *demand)
        if (found := store.load().registrations) != registrations:
            sealed = self._vault.seal(_CLIENT_KIND, found, key.encode())
            await self._vault.kv.put(key, sealed.encode(), _REGISTRATION_SECONDS)
        await self._vault.put(f"connection-login:{self._id}:{owner}", request.who.client_id, _DEMAND_SECONDS)
        return request

    async def _is_unusable(self, client_id: str, abandoned: str | None) -> bool:
        """Return whether a registration can't be used for another login.

        That's the case if the authorization server has rejected it, or if the user's last login with it never came
        back: a server that doesn't know the client shows the user an error (RFC 6749 §4.1.2.1).
        """
        return client_id == abandoned or await self._vault.get(self._rejection_key(client_id), bool) is not None

    def _rejection_key(self, client_id: str) -> str:
        return f"gateway-client-rejected:{digest_of(f'{self._id} {client_id}')}"

    async def finish(self, owner: str, base: str, request: PendingAuthorization, answer: Mapping[str, str]) -> None:
        """Create a user's connection from the redirect after the login.

        Raises:
            ClientError: The redirect doesn't match the request, or the user or the issuer declined.
        """
        await self._vault.kv.delete(f"connection-login:{self._id}:{owner}")
        oauth, store = self._client(base, None, {request.issuer.issuer: request.who})
        try:
            async with asyncio.timeout(ISSUER_TIMEOUT):
                await oauth.exchange_code(self.url, request, answer)
        except AccessDenied:
            if not store.load().registrations:  # the server has dropped the client that all users share
                await self._vault.kv.delete(self._registration_key(base))
                logger.warning(
                    "The authorization server of %s has forgotten this gateway, which registers again when a user "
                    "connects at %s.",
                    self.upstream,
                    PAGE,
                )
                await self._take_rejection(request.who.client_id)
            raise
        self.ended_count = 0
        tokens = store.load().tokens[str(self.url)]
        registration = Registration() if self.options.client_id else request.who
        await self._change_listers(owner, connected=True)
        await self._vault.kv.put(self._prefix + owner, *self._seal(owner, make_grant(tokens, registration)))
        await self._notify_workers(owner)
        await self._vault.kv.delete(f"connection-wanted:{self._id}:{owner}")

    async def disconnect(self, owner: str) -> None:
        """Remove the connection of a user and revoke it at the authorization server (RFC 7009)."""
        _, grant = await self._read(owner)
        await self._change_listers(owner, connected=False)
        await self._vault.kv.delete(self._prefix + owner)
        await self._notify_workers(owner)
        if grant is not None:
            await self._discard(grant)

    @override
    async def _discard(self, grant: StoredGrant) -> None:
        oauth, _ = self._client("", grant, {})
        with suppress(TimeoutError, ClientError):
            async with asyncio.timeout(ISSUER_TIMEOUT):
                await oauth.sign_out(self.url)

    async def _demand(self, owner: str) -> tuple[int, str]:
        """Return the status and challenge of this user's last denied call, or of a call without credentials."""
        demand = await self._vault.get(f"connection-wanted:{self._id}:{owner}", tuple[int, str])
        if demand is not None:
            return demand
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        try:
            reply = await fetch("POST", str(self.url), headers=headers, body=_PROBE)
        except AccessDenied:
            raise
        except ClientError as exc:
            raise ConnectFailed(
                f"The upstream {self.upstream!r} can't be reached at the moment. Try again later."
            ) from exc
        reply.discard()
        return 401, reply.header(b"www-authenticate")[:_MAX_CHALLENGE]

    # Tokens

    @override
    async def _request(self, caller: LinkCaller, old: StoredGrant | None) -> StoredGrant | None:
        if old is None or not old.tokens.refresh_token:
            # Keep it: the refusal may be the upstream's mistake, and the user would have to connect again.
            return None if old is None or old.has_ended else old
        oauth, store = self._client("", old, {})
        try:
            is_renewed = await oauth.refresh(self.url)
        except AccessDenied as exc:  # it's the authorization server's, so the account isn't lost
            raise ConnectFailed(f"The account at {self.upstream!r} can't be renewed at the moment. {exc}") from exc
        if not is_renewed:
            if oauth.rejected_client_id:
                await self._take_rejection(oauth.rejected_client_id)
            self._log_end(oauth.rejected_client_id)
            return None
        return make_grant(store.load().tokens[str(self.url)], old.registration)

    async def _take_rejection(self, client_id: str) -> None:
        """Handle that the authorization server rejects the gateway's client. A registration isn't used again.

        Raises:
            ClientRejected: Only the operator can replace the client.
        """
        if self.options.client_id:
            raise ClientRejected(
                f"The authorization server of {self.upstream!r} rejects the client {client_id!r:.200}. "
                "Correct client_id and client_secret."
            )
        await self._vault.put(self._rejection_key(client_id), True, _REGISTRATION_SECONDS)

    def _log_end(self, rejected: str) -> None:
        """Log that an account has ended without its user; further ones are only counted."""
        self.ended_count += 1
        if self.ended_count == 1:
            logger.warning(
                "The upstream %s no longer accepts a user's account, because its authorization server %s. Its user has "
                "to connect it again at %s.",
                self.upstream,
                "has forgotten this gateway, which registers again" if rejected else "has ended the user's grant",
                PAGE,
            )

    def _client(
        self, base: str, grant: StoredGrant | None, registrations: Mapping[str, Registration]
    ) -> tuple[OAuth, MemoryTokenStore]:
        options, store = self.options, MemoryTokenStore()
        tokens = {} if grant is None else {str(self.url): grant.tokens}
        if grant is not None and grant.registration.client_id:
            registrations = {grant.tokens.issuer: grant.registration, **registrations}
        store.save(StoredCredentials(dict(registrations), tokens))
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
            oauth.for_issuer(options.issuer, send_resource=options.send_resource, assume_pkce=options.assume_pkce)
        return (oauth if self._outbound.dial is None else oauth.with_connector(self._outbound.dial)), store

    def _registration_key(self, base: str) -> str:
        return f"gateway-client:{digest_of(f'{self._id} {base}{CALLBACK}')}"


_TEMPLATE = Path(__file__).parent / "templates" / "connections.html"
_LOGIN_SECONDS = 600.0
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


class ConnectionsPage:
    """The page of one running server, for all upstreams that users connect to individually.

    A signed-in user connects and disconnects accounts here. A login returns in two steps. The callback is a cross-site
    request without the cookie of the user's sign-in, so it only leads the browser to this page, with the same query.
    The answer is used only if the same browser and user began the login.
    """

    def __init__(
        self,
        host: PartHost,
        connections: Callable[[], Mapping[str, PersonalCredentials]],
        describe_offer: Callable[[str], str],
        *,
        server: str,
    ) -> None:
        """Create the page and add its paths.

        Args:
            host: The running server.
            connections: Returns the connections by name of the upstream.
            describe_offer: Returns what an upstream offers on this server, in words, or empty for nothing.
            server: Name of the server.
        """
        self._connections = connections
        self._describe_offer = describe_offer
        self._server = server
        self._vault = Vault(host.services)
        self._login_limiter = Limiter("connect", _LOGIN_RATE)
        self._routes = routes = host.routes
        routes.add(PAGE, Route({"GET": self.show, "POST": self.submit}, reserved=True))
        # The redirect comes from another site, without the cookie of the user's sign-in.
        routes.add(CALLBACK, Route({"GET": self.handle_callback}, public=True, reserved=True))
        routes.add(METADATA, Route({"GET": self.describe}, public=True, reserved=True))

    # The page

    async def show(self, request: HttpRequest) -> Response:
        """Handle `GET /connections`, including the last step of a login."""
        state = query_value("state", request.query)
        if state and request.method == "GET":
            return await self._finish(request, state)
        return await self._page(request, first=query_value("connect", request.query))

    async def submit(self, request: HttpRequest) -> Response:
        """Handle `POST /connections`: connect or disconnect an upstream."""
        principal = request.principal
        if not pages.is_same_origin(request):
            return refusal(403, pages.cross_origin_text(request))
        if principal is None or len(request.body) > _MAX_FORM:
            return _MALFORMED_FORM
        name, action = query_value("upstream", request.body), query_value("action", request.body)
        connection = self._connections().get(name)
        if connection is None or action not in ("connect", "disconnect"):
            return _MALFORMED_FORM
        owner = digest_of(principal.id)
        if action == "connect":
            return await self._begin(request, name, connection, owner)
        await connection.disconnect(owner)
        return self._redirect_to_page(request)

    async def _begin(self, request: HttpRequest, name: str, connection: PersonalCredentials, owner: str) -> Response:
        if self._login_limiter.take(owner) > 0:
            return await self._page(request, "Too many attempts. Wait a minute, then try again.", 429)
        base = connection.base_for(request, request.headers)
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
        pending = PendingConnection(name, owner, digest_of(browser), base, authorization)
        await self._vault.put_pending(_PENDING, authorization.state, pending, _LOGIN_SECONDS)
        return pages.redirect_page(authorization.url, f"Continue to {connection.url.host}", cookie)

    async def handle_callback(self, request: HttpRequest) -> Response:
        """Handle `GET /connections/callback`: open the page with an authorization server's answer."""
        answer = urlencode(parse_qsl(request.query[:_MAX_QUERY].decode("latin-1"), keep_blank_values=True))
        return pages.continue_page(request, f"{PAGE}?{answer}", title="One moment")

    async def _finish(self, request: HttpRequest, state: str) -> Response:
        """Create the connection, if the same browser and user began the login. Each state is valid once."""
        pending = await self._vault.take_pending(_PENDING, state, PendingConnection)
        principal = request.principal
        connection = None if pending is None else self._connections().get(pending.upstream)
        if (
            pending is None
            or principal is None
            or connection is None
            or pending.owner != digest_of(principal.id)
            or not hmac.compare_digest(
                digest_of(pages.get_cookie(request, _cookie_name(pending.base))), pending.browser
            )
        ):
            return await self._page(request, _LOGIN_OVER, 403)
        try:
            answer = parse_redirect("?" + request.query[:_MAX_QUERY].decode("latin-1"))
            await connection.finish(pending.owner, pending.base, pending.authorization, answer)
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
        connection = next(iter(self._connections().values()), None)
        if connection is None:
            return refusal(404, "No upstream needs accounts.")
        base = connection.base_for(request, request.headers)
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

    async def _page(self, request: HttpRequest, notice: str = "", status: int = 200, *, first: str = "") -> Response:
        principal = request.principal
        if principal is None:
            text = "Sign in to this server first: a connection belongs to a user."
            return pages.not_signed_in_page(request, "/sign-in", text, 403)
        owner = digest_of(principal.id)
        rows = [
            (name, each.url, await each.load(owner), self._describe_offer(name))
            for name, each in self._connections().items()
        ]
        rows.sort(key=lambda row: row[0] != first)
        return pages.render(
            _TEMPLATE, status, root=f"{request.root_path}/", images=pages.IMAGES, server=self._server, notice=notice,
            rows=rows, wanted=first, links=self._links(principal),
            who=_name(principal.claims.get("name")) or principal.subject,
        )  # fmt: skip

    def _links(self, principal: Principal) -> dict[str, str]:
        """Return the pages of this server that lead on from this one: label -> path below the root."""
        links: dict[str, str] = {}
        if "/gateway" in self._routes.exact and principal.has([WATCH]):
            links["Gateway"] = "gateway"
        if self._routes.home is not None:
            links["Start page"] = self._routes.home[0].lstrip("/")
        return links

    @staticmethod
    def _redirect_to_page(request: HttpRequest) -> Response:
        """Redirect to the page itself, so that a reload doesn't repeat the request."""
        return Response(b"", 303, header_lines(location=f"{request.root_path}{PAGE}", cache_control="no-store"))


def _cookie_name(base: str) -> str:
    return f"{'__Host-' if base.startswith('https://') else ''}millstream-browser"


def _name(claim: object) -> str:
    return claim if isinstance(claim, str) and claim.isprintable() and len(claim) < 128 else ""
