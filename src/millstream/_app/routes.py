"""Which handler serves which path, for both HTTP adapters."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from millstream._app.probes import Probes
from millstream._app.protection import Protection
from millstream._http.hosts import EXEMPT, not_a_socket, of_this_site
from millstream._http.message import TEXT_HEAD, Handler, Request, Response, Sink, refusal
from millstream._server.calls.services import Services
from millstream._server.dispatch import Dispatcher
from millstream._stores.health import StoreHealth
from millstream._transports.http_sse import HttpSse
from millstream._transports.open_streams import OpenStreams
from millstream._transports.streamable.exchange import Endpoint
from millstream._transports.streamable.get import SessionStreams
from millstream._transports.streamable.post import Streamable
from millstream._transports.streamable.sessions import HttpSessions

if TYPE_CHECKING:
    from millstream._app.added import AddedPaths
    from millstream._app.looking import Live
    from millstream._transports.websocket.route import WebSocketRoute
    from millstream.hub import Hub

_Table = dict[str, Mapping[str, Handler]]


class Routes:
    """The paths of one running server."""

    __slots__ = ("_added", "_by_path", "_hot", "_nothing_at_home", "_prefixes", "_streams")

    def __init__(
        self,
        parts: frozenset[str],
        dispatcher: Dispatcher,
        streams: OpenStreams,
        health: StoreHealth,
        protection: Protection,
        probes: Probes,
        *,
        hub: "Hub | None" = None,
        render_metrics: Callable[[], Awaitable[bytes]] | None = None,
        websocket: "WebSocketRoute | None" = None,
        live: "Live | None" = None,
    ) -> None:
        services = dispatcher.services
        settings = services.settings
        sessions = HttpSessions(services) if settings.sessions else None
        endpoint = Endpoint(dispatcher, streams, sessions)
        streamable = Streamable(endpoint)
        legacy = HttpSse(dispatcher, streams)
        standing = SessionStreams(endpoint, first=legacy.get)
        path = settings.path
        mcp: Mapping[str, Handler] = {"POST": streamable.post, "GET": standing.get, "DELETE": standing.delete}
        self._by_path: _Table = {
            path: mcp,
            path.rstrip("/") + "/": mcp,
            settings.sse_path: {"GET": legacy.get},
            settings.messages_path: {"POST": legacy.post},
            settings.messages_path.rstrip("/") or "/": {"POST": legacy.post},
            "/health": {"GET": probes.health},
            "/livez": {"GET": probes.live},
            "/readyz": {"GET": probes.ready},
            **protection.own,
        }
        self._streams = {path, path.rstrip("/") + "/", settings.sse_path, "/events", "/dashboard/events"}
        """A HEAD of these would open a stream."""
        self._prefixes: list[tuple[str, Mapping[str, Handler]]] = []
        self._nothing_at_home = _told_where(path)
        if hub is not None:
            self._add_hub(hub, dispatcher, streams, websocket)
        if "rest" in parts:
            self._add_rest(dispatcher, pages="web" in parts)
        if hub is not None and live is not None:
            self._add_live(hub, live, settings.audit_log)
        if "web" in parts:
            self._add_inspecting(services, streams)
        if render_metrics is not None:
            self._add_metrics(render_metrics, health)
        self._added = protection.added
        if self._added is not None:
            self._add_own(self._added)
        self._protect(protection, home="rest" in parts, socket=websocket is not None)
        self._hot = {
            (method.encode(), each.encode()): handler
            for each, handlers in self._by_path.items()
            for method, handler in handlers.items()
            if each not in EXEMPT
        }
        """What the lane serves. Probes go the long way, where Host and Origin are not checked but CORS is kept."""

    def _add_hub(
        self,
        hub: "Hub",
        dispatcher: Dispatcher,
        streams: OpenStreams,
        websocket: "WebSocketRoute | None",
    ) -> None:
        from millstream._transports.hub_routes import HubRoutes  # noqa: PLC0415  each part only where it is served

        services = dispatcher.services
        gzip, max_depth = services.settings.gzip_streams, services.settings.max_depth
        handlers = HubRoutes(hub, streams, max_depth=max_depth, gzip=gzip, note=services.note)
        self._by_path["/events"] = {"GET": handlers.events}
        self._by_path["/publish"] = {"POST": handlers.publish}
        self._prefixes.append(("/mcp/sse/", {"GET": of_this_site(handlers.client_stream)}))
        if websocket is not None:
            self._by_path["/ws"] = {"GET": websocket.plain}

    def _add_rest(self, dispatcher: Dispatcher, *, pages: bool) -> None:
        from millstream._transports.rest.routes import RestRoutes  # noqa: PLC0415
        from millstream._web.pages import pages as shown_pages  # noqa: PLC0415

        rest = RestRoutes(dispatcher)
        self._by_path["/mcp/tools/list"] = {"POST": rest.list_tools}
        self._by_path["/mcp/tools/call"] = {"POST": rest.call_tool}
        self._by_path["/openapi.json"] = {"GET": rest.describe}
        self._prefixes.append(("/tools/", {"POST": rest.run_tool}))
        for path, handler in shown_pages(None if pages else ("docs",)).items():
            self._by_path[path] = {"GET": handler}

    def _add_own(self, added: "AddedPaths") -> None:
        """The program's own paths. Whether one is public is the program's word, so it must not be a path of ours."""
        taken = added.exact.keys() & self._by_path.keys() - added.fixed
        if taken:
            raise ValueError(f"{min(taken)!r} is a path of Millstream's own here. Use another one for your own route")
        kept = {each: handlers for each, handlers in self._by_path.items() if each not in added.fixed}
        self._by_path = {**added.exact, **kept}
        self._streams -= added.fixed

    def _protect(self, protection: Protection, *, home: bool, socket: bool) -> None:
        """Put the guard in front of all paths, and close what opens a stream to pages of other sites and to sockets."""
        for each in self._streams & self._by_path.keys():
            handlers = self._by_path[each]
            self._by_path[each] = {**handlers, "GET": of_this_site(not_a_socket(handlers["GET"], served=socket))}
        self._by_path = {each: protection.protect(each, handlers) for each, handlers in self._by_path.items()}
        if home:
            self._add_home(protection)
        self._prefixes = [(each, protection.protect(each, handlers)) for each, handlers in self._prefixes]

    def _add_home(self, protection: Protection) -> None:
        """Where nothing else has ``/``, it leads to a page, for those who may have that page."""
        from millstream._web.pages import leads_to  # noqa: PLC0415

        if "/" not in self._by_path and self._below("/") is None:
            page = "/inspect" if "/inspect" in self._by_path else "/docs"
            protected = protection.protect(page, {"GET": leads_to(page[1:])})
            self._by_path["/"] = {"GET": _as_if(page, protected["GET"])}

    def _add_live(self, hub: "Hub", live: "Live", audit_log: str) -> None:
        from millstream._web.audit import AuditRecords  # noqa: PLC0415
        from millstream._web.live import ChatMembers  # noqa: PLC0415
        from millstream._web.looking import looking_paths  # noqa: PLC0415

        for path, handler in looking_paths(live.looking).items():
            self._by_path[path] = {"GET": handler}
        self._by_path["/dashboard/audit"] = {"GET": AuditRecords(audit_log).get}
        self._by_path["/dashboard/events"] = {"GET": live.feed.events}
        self._by_path["/chat/members"] = {"GET": ChatMembers(hub).get}

    def _add_inspecting(self, services: Services, streams: OpenStreams) -> None:
        from millstream._web.inspect_sign_in import CALLBACK  # noqa: PLC0415
        from millstream._web.inspecting import PREFIX, SIGN_IN, Inspecting  # noqa: PLC0415

        inspecting = Inspecting(services.settings.inspect, services, streams)
        relay, sign_in = inspecting.relay, inspecting.sign_in
        self._by_path["/inspect/servers"] = {"GET": inspecting.servers}
        self._by_path[CALLBACK] = {"GET": inspecting.sign_ins.returned}
        self._prefixes.append((SIGN_IN, {"POST": sign_in, "DELETE": sign_in}))
        self._prefixes.append((PREFIX, {"POST": relay, "GET": of_this_site(relay), "DELETE": relay}))

    def _add_metrics(self, render: Callable[[], Awaitable[bytes]], health: StoreHealth) -> None:
        from millstream._telemetry.endpoint import MetricsHttp  # noqa: PLC0415

        self._by_path["/metrics"] = {"GET": MetricsHttp(render, measure=health.look).get}

    def find(self, method: str, path: str) -> Handler | None:
        """The handler of a path below the mount point; None for 404."""
        exact = self._by_path.get(path)
        handlers = exact or self._below(path)
        if handlers is None:
            return self._nothing_at_home if path == "/" and method in ("GET", "HEAD") else None
        handler = handlers.get(method)
        if handler is None and method == "HEAD" and exact is not None and path not in self._streams:
            handler = exact.get("GET")
        return handler if handler is not None else _not_allowed(handlers)

    def _below(self, path: str) -> Mapping[str, Handler] | None:
        for prefix, handlers in self._prefixes:
            if path.startswith(prefix):
                return handlers
        return None if self._added is None else self._added.find(path)

    @property
    def hot(self) -> dict[tuple[bytes, bytes], tuple[Handler, str, str]]:
        """What the lane finds by itself: method and path -> handler, and both as text."""
        return {
            (method, path): (handler, method.decode(), path.decode()) for (method, path), handler in self._hot.items()
        }

    def find_hot(self, method: bytes, path: bytes) -> Handler | None:
        """The handler of a path that the lane serves itself."""
        found = self._hot.get((method, path))
        if found is None and (self._prefixes or self._added is not None):
            below = self._below(path.decode("latin-1"))
            return None if below is None else below.get(method.decode("latin-1"))
        return found


def _as_if(path: str, handler: Handler) -> Handler:
    """The handler, asked as if for another path: whoever signs in for that one comes in, and else is asked to."""

    def asked(request: Request) -> Awaitable[Response | Sink | None]:
        request.path = path
        return handler(request)

    return asked


def _told_where(path: str) -> Handler:
    """The 404 of ``/`` where nothing is: somebody gave a browser the address of the server, and not that of MCP."""

    async def refuse(request: Request) -> Response:
        return refusal(404, f"MCP is served at {request.root_path}{path}. Give that address to an MCP client.")

    return refuse


def _not_allowed(handlers: Mapping[str, Handler]) -> Handler:
    allowed = ", ".join([*handlers, "OPTIONS"])
    reply = Response(
        b"Method not allowed. This path takes %b.\n" % allowed.encode(),
        405,
        TEXT_HEAD + b"allow: %b\r\n" % allowed.encode(),
    )

    async def refuse(request: Request) -> Response:
        return reply

    return refuse
