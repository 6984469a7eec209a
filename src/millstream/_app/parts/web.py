"""The pages: dashboard, chat, inspector, and API documents, with their data."""

import time
from collections.abc import Collection
from typing import Any

from millstream._app.dashboard_queries import DashboardQueries
from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._http.message import Handler
from millstream._parts import WATCH, Host, Route
from millstream._server.observability.recent_calls import RecentCalls
from millstream._stores.base import Store
from millstream._stores.health import StoreHealth
from millstream._stores.memory.store import MemoryStore
from millstream._telemetry.logs import capture_logs
from millstream._telemetry.prints import capture_prints
from millstream._web.audit import AuditRecords
from millstream._web.connect import ConnectFacts
from millstream._web.dashboard_routes import query_handlers, upstream_handlers
from millstream._web.live import ChatMembers, DashboardFeed, LogFeed, LogTail


class WebPart(OwnPart):
    """Serves the pages, and collects data for the dashboard."""

    name: str = "web"
    needs: Collection[str] = ("hub", "rest", "metrics", "observation")

    async def open(self, host: Host) -> None:
        """Start collecting data."""
        definition, services, store, health = self.definition, host.services, host.store, host.store_health
        observer, hub = host.observer, host.hub
        assert observer is not None and hub is not None  # noqa: S101, PT018  it needs both
        calls = RecentCalls()
        host.observe(calls.observe)
        queries = DashboardQueries(
            services.peers, observer, calls, streams=host.streams, hub=hub, me=store.workers.me, upstreams=host.gateway
        )

        async def measure() -> None:
            await queries.measure()
            await health.look()

        feed = DashboardFeed(
            lambda: queries.snapshot(store=store_figures(health, store)),
            LogTail(),
            host.streams,
            info={
                "name": definition.name,
                "title": definition.info.title or definition.name,
                "version": definition.version,
                "started": time.time(),
                "facts": {"Serves": ", ".join(["mcp", *sorted(definition.parts)]), "Endpoint": host.settings.path},
            },
            refresh=measure,
        )
        host.on_close(capture_logs(feed.log))
        for running in (feed.run(), queries.run()):
            host.run(running)
        dashboard: dict[str, Handler] = {
            **query_handlers(queries),
            "/dashboard/audit": AuditRecords(host.settings.audit_log).get,
            "/dashboard/events": feed.events,
        }
        if host.gateway is not None:
            info = {"title": definition.info.title or definition.name, "version": definition.version}
            dashboard |= upstream_handlers(queries.upstreams, host.gateway.items, info)
        for path, handler in dashboard.items():
            route = Route({"GET": handler}, stream=path == "/dashboard/events", scope=WATCH, private=True)
            host.routes.add(path, route)
        host.routes.add("/chat/members", Route({"GET": ChatMembers(hub).get}, private=True))
        if host.settings.show_errors:
            host.on_close(capture_prints(feed.log))
            developing = LogFeed(feed.log, host.streams)
            host.routes.add("/inspect/log", Route({"GET": developing.events}, stream=True, local=True))
        host.on_http(lambda: _serve(host, definition))


def _serve(host: Host, definition: Definition) -> None:
    from millstream._http.hosts import require_same_site  # noqa: PLC0415  a server without HTTP does without these
    from millstream._transports.websocket.route import WebSocketRoute  # noqa: PLC0415
    from millstream._web import app_frame  # noqa: PLC0415
    from millstream._web.inspect_sign_in import CALLBACK  # noqa: PLC0415
    from millstream._web.inspector import PREFIX, SIGN_IN, Inspector  # noqa: PLC0415
    from millstream._web.pages import add_pages, page_names  # noqa: PLC0415
    from millstream._web.playground import PATH, SOCKET_PATH, Playground  # noqa: PLC0415

    routes = host.routes
    missing = () if host.gateway is not None else ("gateway",)
    add_pages(routes, without=missing)
    routes.home = "/connect", routes.exact["/connect"].handlers["GET"]
    shown = [each for each in page_names() if each not in missing]
    public = [each for each in shown if not routes.exact[f"/{each}"].private]
    facts = ConnectFacts(host.settings, host.guard, shown, public=public, is_local=host.is_local)
    routes.add("/connect/server", Route({"GET": facts.get}))
    server = {"title": definition.title, "version": definition.version}
    playground = Playground(
        definition.name,
        server,
        host.dispatcher,
        host.guard,
        is_local=host.is_local,
    )
    socket = WebSocketRoute(
        host.dispatcher, None, host.policy, host.streams, guard=playground.admit, dialect=playground.open
    )
    host.sockets[SOCKET_PATH] = socket
    host.on_drain(socket.close)
    routes.add(PATH, Route({"GET": playground.status}, private=True))
    routes.add(SOCKET_PATH, Route({"GET": socket.plain}, private=True))
    inspecting = Inspector(
        host.settings.inspect,
        host.services,
        host.streams,
        shows_log=host.settings.show_errors,
        tags=lambda: {
            name: sorted(tool.tags) for name, tool in host.registry.tools.items() if tool.tags and tool.visible is None
        },
    )
    relay, sign_in = inspecting.relay, inspecting.sign_in
    # It holds nothing: whatever it shows comes from the page that embeds it.
    routes.add(app_frame.PATH, Route({"GET": app_frame.get}, public=True))
    routes.add("/inspect/servers", Route({"GET": inspecting.servers}, local=True))
    # The redirect comes from another site, without the cookie of the user's sign-in; the handler identifies users
    # itself.
    routes.add(CALLBACK, Route({"GET": inspecting.sign_ins.handle_callback}, local=True, public=True))
    routes.add_prefix(SIGN_IN, Route({"POST": sign_in, "DELETE": sign_in}, local=True))
    routes.add_prefix(PREFIX, Route({"POST": relay, "GET": require_same_site(relay), "DELETE": relay}, local=True))


def store_figures(health: StoreHealth, store: Store) -> dict[str, Any]:
    """Return whether the store responds, and how full it is. Only the memory store has a limit that its server can
    reach, and knows its size.
    """
    figures: dict[str, Any] = {"kind": health.kind, "up": health.up}
    return figures | _fullness(store) if isinstance(store, MemoryStore) else figures


def _fullness(store: MemoryStore) -> dict[str, Any]:
    return {
        "values": {
            "bytes": max((kind.size for kind in store.kv.kinds.values()), default=0),
            "max_bytes": store.kv.max_bytes,
        },
        "log": {name: {"bytes": part.size, "max_bytes": store.log.max_bytes} for name, part in store.log.kinds.items()},
    }
