"""The paths of a running server, from its parts and the program, behind the required checks.

If callers have to sign in, every path requires a credential unless its route is public. Otherwise, the private paths
(most pages, `/publish`, `/metrics`) accept only programs on the server's own machine (`LocalOnly`).
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from millstream._http.hosts import is_loopback, not_a_socket, parse_authority, require_same_site
from millstream._http.message import (
    STREAM_HEAD,
    TEXT_HEAD,
    Handler,
    HttpRequest,
    Response,
    Sink,
    plain_problem,
    refusal,
    wants_page,
)
from millstream._parts import Route, RouteRegistry
from millstream._protocol.errors import ProtocolError
from millstream._server.address import Address
from millstream._server.calls.services import UNLIMITED, ObserveMessage, RequestLimits

if TYPE_CHECKING:
    from millstream.auth._guard import AuthGuard


logger = logging.getLogger("millstream")

_FORWARDED = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"})
_PREFIX = b"x-forwarded"
_REFUSED = Response(
    b"This page needs a sign-in, and this server has none. To sign in here, start the server with a long random text "
    b"in MCP_SERVER_AUTH_KEY. Without sign-in, the page opens only on the server's own machine, at a loopback address "
    b"such as http://127.0.0.1:8000, on a server bound to one, and not through a proxy.\n",
    403,
    TEXT_HEAD,
)


class LocalOnly(msgspec.Struct, frozen=True):
    """Distinguishes programs on this machine from other callers.

    A loopback address isn't sufficient, because a proxy on the same machine also has one, and its clients can be
    anywhere. A request is treated as local only if the server is bound to a loopback address (or its address is
    unknown), the peer has one, no header says that the request was forwarded, and its Host is a loopback name. A
    request through nginx with only a `proxy_pass` meets all of these conditions. Before nginx 1.29.7, it uses HTTP/1.0,
    unlike browsers, curl, and Prometheus.
    """

    loopback: bool | None
    """Whether the server is bound to a loopback address, or None if that's unknown."""
    note: ObserveMessage
    _warned_about: set[str] = set()

    def allows(self, peer: str, headers: Mapping[bytes, bytes], is_http_1_0: bool) -> bool:
        """Return whether a request comes directly from a program on this machine.

        Args:
            peer: Address of the peer.
            headers: Headers of the request, with names in lower case.
            is_http_1_0: See `HttpRequest`.
        """
        if (
            self.loopback is False
            or not is_loopback(peer)
            or not _FORWARDED.isdisjoint(headers)
            or _PREFIX in b"\n".join(headers)
        ):
            return False
        host = parse_authority(headers.get(b"host", b""))
        if host is None or not host.loopback:
            return False
        if is_http_1_0 and not self._warned_about:
            self._warned_about.add("HTTP/1.0")
            logger.warning(
                "Denied access to a private page, because the request came over HTTP/1.0, probably from a proxy that "
                "hides its clients. Enable sign-in to allow access. If the proxy asks for a password, "
                "`proxy_http_version 1.1;` in nginx allows access without sign-in. This is logged only once."
            )
        return not is_http_1_0

    def guard(self, handler: Handler, *, message: str = "") -> Handler:
        """Wrap a handler to accept only programs on this machine.

        `message` describes a rejected request for message logs.
        """

        async def check_peer(request: HttpRequest) -> Response | Sink | None:
            if self.allows(request.peer, request.headers, request.is_http_1_0):
                return await handler(request)
            if message:
                self.note(message, "http", status="403", address=request.peer)
            return _REFUSED

        return check_peer


class Routes:
    """Finds the handler of a request, for both HTTP adapters."""

    def __init__(
        self,
        table: RouteRegistry,
        *,
        guard: "AuthGuard | None",
        here_only: LocalOnly,
        limits: RequestLimits,
        sockets: bool,
        addresses: Sequence[Address],
        title: str,
    ) -> None:
        """Wrap each route in its checks, once.

        Args:
            table: The routes.
            guard: Protects the paths that aren't public, if callers have to sign in.
            here_only: Limits local paths to this machine and, if callers don't have to sign in, private paths too.
            limits: Rate limits of requests.
            sockets: Whether the server has a WebSocket.
            addresses: The addresses of MCP, the main path first. They can change before an update.
            title: The server's display name.
        """
        self._table = table
        self._guard, self._here_only, self._has_sockets = guard, here_only, sockets
        self._addresses = addresses
        self._title = title
        self._limits = limits
        mcp_path = addresses[0].path
        self._pages = {label: path for label, path in _PAGES.items() if path in table.exact}
        with_issuer = guard is not None and any(each.issuers for each in guard.methods)
        self._sign_in = "--login" if with_issuer else "" if guard is None else _KEY

        self._mcp = f"MCP is served at {{root}}{mcp_path}."
        nothing = self._limit(_refuse(404, f"{self._mcp} Give that address to an MCP client."))
        self._nothing_at_home = self._enter(nothing, mcp_path)
        self.update()

    def update(self) -> None:
        """Serve the routes that the table has now."""
        table, protect = self._table, self._protect
        self._transport = {path for path, route in table.exact.items() if route.reserved} - {self._addresses[0].path}
        """Paths of earlier transports and of sign-in, which clients try if they don't find MCP."""
        self._exact: dict[str, Mapping[str, Handler]] = {path: protect(route) for path, route in table.exact.items()}
        self._patterns = [(pattern, protect(route)) for pattern, route in table.patterns]
        self._prefixes = [(prefix, protect(route)) for prefix, route in table.prefixes.items()]
        for address in self._addresses:
            self._add_entry(address.path)
        if table.home is not None and "/" not in self._exact and self._below("/") is None:
            page, redirect = table.home
            redirects = protect(Route({"GET": redirect}, private=table.exact[page].private))
            self._exact["/"] = {"GET": _as_if(page, redirects["GET"])}

    def _protect(self, route: Route) -> dict[str, Handler]:
        """Wrap the handlers of a route in its checks."""
        guard, here_only = self._guard, self._here_only
        if route.stream:  # deny streams to pages of other sites and to WebSockets
            get = require_same_site(not_a_socket(route.handlers["GET"], served=self._has_sockets))
            route = msgspec.structs.replace(route, handlers={**route.handlers, "GET": get, "HEAD": _describe_stream})
        handlers = dict(route.handlers)
        if route.local or (route.private and guard is None):
            message = route.message
            handlers = {method: here_only.guard(handler, message=message) for method, handler in handlers.items()}
        by_transport = _MESSAGES if route.charged == "message" else ()
        if route.charged:
            handlers |= {method: self._limit(handlers[method]) for method in handlers.keys() - by_transport}
        if guard is not None and not route.public:
            handlers = {
                method: guard.protect(handler, scope=route.scope, message=route.message, own=route.own)
                for method, handler in handlers.items()
            }
        elif route.own:
            return handlers  # every response comes from the program
        if route.refuse is not None:
            handlers["GET"] = _change_refusals(handlers["GET"], route.refuse)
        return {
            method: self._for_browsers(handler, own=route.own)
            if method in _READING or route.own or (route.public and route.reserved)
            else handler
            for method, handler in handlers.items()
        }

    def _add_entry(self, mcp_path: str) -> None:
        """Show browsers a page at a path of MCP."""
        for path in (mcp_path, mcp_path.rstrip("/") + "/"):
            if served := self._exact.get(path):
                pages = {method: self._enter(served[method], mcp_path) for method in _READING if method in served}
                self._exact[path] = {**served, **pages}

    def find(self, method: str, path: str) -> Handler | None:
        """Return the handler of a path under the mount point, or None for 404."""
        exact = self._exact.get(path)
        handlers = exact or self._below(path)
        if handlers is None:
            return self._nothing_at_home if path == "/" else self._missing(method, path)
        handler = handlers.get(method)
        if handler is None and path == "/" and method == "POST":  # a client without the endpoint's path
            return self._nothing_at_home
        if handler is None and method == "HEAD" and exact is not None:
            handler = exact.get("GET")
        if handler is None:
            allowed = ", ".join([*handlers, "OPTIONS"])
            hint = self._mcp if path in self._transport else _HINTS.get(path.rstrip("/"), "")
            text = f"Method not allowed. This path takes {allowed}. {hint}".rstrip()
            refusal = self._for_browsers(self._limit(_refuse(405, text, allow=allowed)))
            return _allow(allowed, refusal) if method == "OPTIONS" else refusal
        return handler

    def _missing(self, method: str, path: str) -> Handler | None:
        """Return the 404 for a path. Without limits, return None for methods that programs use to send a body, which is
        then ignored.
        """
        bare = path.rstrip("/")
        if bare in _SIGN_IN_NAMES and _SIGN_IN in self._exact:
            bare = _SIGN_IN
        if len(bare) <= _MAX_MISSPELLED and bare not in self._exact and bare not in _HINTS:
            bare = next(iter(get_close_matches(bare, KNOWN_PATHS, 1, _LEAST_ALIKE)), bare)
        part = KNOWN_PATHS.get(bare)
        if part and self._exact.keys().isdisjoint(_BY_PART[part]):
            text = f"This server doesn't serve {{root}}{bare}. Start it with --serve {part} or --serve all, or use "
            return self._for_browsers(self._limit(_refuse(404, f"{text}Server(serve={part!r}).")))
        if method not in ("GET", "HEAD", "POST") and self._limits is UNLIMITED:
            return None
        text = f"Use {{root}}{bare}." if bare in self._exact else _HINTS.get(bare, self._mcp)
        if self._sign_in == _KEY and path.startswith(_OAUTH):
            text = "This server needs a key, not OAuth: send the header Authorization: Bearer, followed by your key."
        return self._for_browsers(self._limit(_refuse(404, f"Not found. {text}")))

    def _limit(self, handler: Handler) -> Handler:
        """Wrap a handler to charge each request to its caller."""
        limits = self._limits
        if limits is UNLIMITED:
            return handler

        @wraps(handler)
        async def charge(request: HttpRequest) -> Response | Sink | None:
            try:
                await limits.admit(request)
            except ProtocolError as exc:
                return plain_problem(max(exc.status, 400), exc.message, exc.head)
            return await handler(request)

        return charge

    def _for_browsers(self, handler: Handler, *, own: bool = False) -> Handler:
        """Wrap a handler to show its error responses as pages in browsers. If `own`, responses behind the guard are
        the program's and stay unchanged.
        """

        async def show(request: HttpRequest) -> Response | Sink | None:
            reply = await handler(request)
            if not isinstance(reply, Response) or (own and request.principal is not None):
                return reply
            return self.refusal_for(request, reply)

        return _unless_browser(handler, show)

    def refusal_for(self, request: HttpRequest, reply: Response) -> Response:
        """Return a refusal as a page, if a browser asks for one."""
        if not wants_page(request):
            return reply
        from millstream._web.error_pages import FONT, error_page  # noqa: PLC0415  only for browsers

        links = {} if reply.status == 421 else {"Start page": "/"}
        if reply.status in (401, 403) and _SIGN_IN in self._exact:
            # The path to return to after signing in. Only this server's pages are accepted.
            links["Sign in"] = (
                f"/sign-in?{urlencode({'next': request.path})}" if request.method == "GET" else "/sign-in"
            )
        font = reply.status != 421 and FONT in self._exact
        return error_page(request, reply, self._title, links, font=font)

    def _enter(self, handler: Handler, mcp_path: str) -> Handler:
        """Return the MCP endpoint's handler, which shows browsers a page."""

        async def show(request: HttpRequest) -> Response:
            from millstream._web.error_pages import FONT, entry_page  # noqa: PLC0415  only for browsers

            font = FONT in self._exact
            return entry_page(request, mcp_path, self._title, self._pages, sign_in=self._sign_in, font=font)

        return _unless_browser(handler, self._limit(show))

    def _below(self, path: str) -> Mapping[str, Handler] | None:
        for pattern, handlers in self._patterns:
            if pattern.match(path):
                return handlers
        return next((handlers for prefix, handlers in self._prefixes if path.startswith(prefix)), None)

    @property
    def hot(self) -> dict[tuple[bytes, bytes], tuple[Handler, str, str]]:
        """Method and path -> handler, and both as text, for the fast head reader."""
        return {
            (method.encode(), path.encode()): (handler, method, path)
            for path, handlers in self._exact.items()
            for method, handler in handlers.items()
        }


_READING = ("GET", "HEAD")
_MESSAGES = frozenset(("POST", "DELETE"))
"""Methods whose requests the transport charges."""


async def _describe_stream(request: HttpRequest) -> Response:
    """Respond to HEAD on a path where GET opens a stream, without opening it."""
    return Response(b"", 200, STREAM_HEAD)


_PAGES = {"Connect a client": "/connect", "API docs": "/docs"}
"""Paths of pages for people who open the MCP endpoint, by label."""


def _unless_browser(handler: Handler, show: Handler) -> Handler:
    """Return a handler that calls `show` for browsers, and `handler` for programs."""

    @wraps(handler)
    def call(request: HttpRequest) -> Awaitable[Response | Sink | None]:
        return (show if wants_page(request) else handler)(request)

    return call


def _change_refusals(handler: Handler, change: Callable[[HttpRequest, Response], Response]) -> Handler:
    @wraps(handler)
    async def call(request: HttpRequest) -> Response | Sink | None:
        reply = await handler(request)
        return change(request, reply) if isinstance(reply, Response) else reply

    return call


def _refuse(status: int, text: str, **headers: str) -> Handler:
    """Return a handler that refuses requests. `{root}` in its text is the path at which the server is mounted."""

    async def refuse(request: HttpRequest) -> Response:
        return refusal(status, text.replace("{root}", request.root_path), vary="accept", **headers)

    return refuse


def _allow(allowed: str, refusal: Handler) -> Handler:
    """Return the OPTIONS handler, which lists a path's methods (RFC 9110 §9.3.7).

    A preflight that gets here isn't allowed, so it's rejected.
    """

    async def answer(request: HttpRequest) -> Response | Sink | None:
        if b"access-control-request-method" in request.headers:
            return await refusal(request)
        return Response(b"", 204, f"allow: {allowed}\r\n".encode())

    return answer


def _as_if(path: str, handler: Handler) -> Handler:
    """Wrap a handler to treat requests as if they were for another path, so callers sign in for that path."""

    def call(request: HttpRequest) -> Awaitable[Response | Sink | None]:
        request.path = path
        return handler(request)

    return call


_BY_PART = {
    "web": ("/connect", "/dashboard", "/chat", "/inspect"),
    "rest": ("/docs", "/openapi.json", "/tools", "/mcp/tools"),
    "hub": ("/events", "/hub.js", "/members", "/publish", "/ws"),
    "metrics": ("/metrics",),
}
"""Well-known paths that each part would serve."""
KNOWN_PATHS = {path: part for part, paths in _BY_PART.items() for path in paths}
"""Paths to suggest for similar ones. A program's own paths aren't suggested, because they may be private."""

_SIGN_IN = "/sign-in"
_KEY = "--auth KEY"
"""How clients sign in with a key, in the client commands' options."""
_OAUTH = ("/register", "/authorize", "/token", "/.well-known/oauth-", "/.well-known/openid-configuration")
"""Beginnings of the paths that clients without a key try, and whose replies they show to people."""
_SIGN_IN_NAMES = frozenset({"/login", "/log-in", "/signin", "/auth", "/auth/login", "/account", "/account/login"})
"""Common names of sign-in pages, which people try."""
_MAX_MISSPELLED = 64
"""Maximum length of a path to compare with known paths. Longer ones take longer to compare."""
_LEAST_ALIKE = 0.8
"""Minimum similarity, from 0 to 1, between a path and a suggested one."""
_HINTS = {
    "/tools": "Each tool has its own path: POST the arguments to {root}/tools/NAME. {root}/docs lists the tools.",
    "/mcp/tools": "POST to {root}/mcp/tools/list or {root}/mcp/tools/call.",
}
"""Advice by path, for parts that are served."""
