"""The page where a signed-in user connects and disconnects accounts of upstreams.

A login returns in two steps. The callback is a cross-site request without the cookie of the user's sign-in, so it only
stores the answer for the browser that began the login. That browser then opens the page with both cookies, and the
answer is used only for the user who began the login.
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from msgspec import Struct
from msgspec.structs import replace

from millstream._http.message import JSON_HEAD, HttpRequest, Response, header_lines, query_value, refusal
from millstream._limits.limiters import Limiter, Rate
from millstream._parts import Host, Route
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.records import new_secret
from millstream.auth._authorization_server.signing import Vault, new_state
from millstream.auth._authorization_server.tickets import Tickets, name_of, same_browser
from millstream.auth._pages import is_at, is_own, not_own
from millstream.client import ClientError
from millstream.client._oauth.grants import PendingAuthorization, answer_of
from millstream.gateway._credentials.accounts import (
    CALLBACK,
    METADATA,
    PAGE,
    PersonalCredentials,
    owner_of,
)
from millstream.protocol import encode

_TEMPLATE = Path(__file__).parent / "templates" / "connections.html"
_LOGIN_SECONDS = 600.0
_ANSWER_SECONDS = 120.0
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
    """The page of one running server, for all upstreams that users connect to individually."""

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
        if not is_own(request):
            return refusal(403, not_own(request))
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
        if not is_at(request, base):
            return await self._page(request, f"You can only connect accounts at {base}{PAGE}. Open that address.", 400)
        tickets = Tickets(self._vault, secure=base.startswith("https://"))
        browser, cookie = tickets.browser(request)
        try:
            authorization = replace(await connection.begin(owner, base), state=new_state(owner))
        except TimeoutError:
            return await self._page(request, f"{name} or its authorization server took too long. Try again.", 504)
        except ClientError as exc:
            return await self._page(request, pages.quote_foreign(str(exc)), 502)
        pending = PendingConnection(name, owner, name_of(browser), base, authorization)
        await self._vault.put_pending(_PENDING, authorization.state, pending, _LOGIN_SECONDS)
        return pages.lead_on(authorization.url, f"Continue to {connection.url.host}", cookie)

    async def handle_callback(self, request: HttpRequest) -> Response:
        """Handle `GET /connections/callback`: store the answer of an authorization server. Each state is valid once."""
        try:
            answer = answer_of("?" + request.query[:_MAX_QUERY].decode("latin-1"))
        except ClientError:
            answer = {}
        state = answer.get("state", "")
        pending = (
            await self._vault.take_pending(_PENDING, state, PendingConnection)
            if state and request.method == "GET"
            else None
        )
        if pending is None or not self._is_browser_of(request, pending):
            return pages.turned_back(request, PAGE, _LOGIN_OVER, 403)
        handle = f"{state.partition('.')[0]}.{new_secret()}"
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
        return Response(encode(document), 200, JSON_HEAD + header_lines(cache_control="max-age=300"))

    # Helpers

    def _is_browser_of(self, request: HttpRequest, pending: PendingConnection) -> bool:
        tickets = Tickets(self._vault, secure=pending.base.startswith("https://"))
        return same_browser(pending.browser, tickets.known_browser(request))

    async def _page(self, request: HttpRequest, notice: str = "", status: int = 200, *, first: str = "") -> Response:
        principal = request.principal
        if principal is None:
            text = "Sign in to this server first: a connection belongs to a user."
            return pages.turned_back(request, "/sign-in", text, 403)
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


def _name(claim: object) -> str:
    return claim if isinstance(claim, str) and claim.isprintable() and len(claim) < 128 else ""
