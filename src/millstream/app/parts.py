"""What can run beside MCP (``Server(serve=…)``): the hub, REST, the pages, metrics; and what each needs.

A server that serves none of them imports none of them.
"""

import sys
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from millstream.http.hosts import of_this_site
from millstream.http.message import Handler
from millstream.protocol.errors import LocalError
from millstream.protocol.handshake import Opening
from millstream.protocol.principal import Principal
from millstream.server.calls.notes import SESSION_OVER, ObserveMessage
from millstream.server.calls.sessions import Session
from millstream.stores.base import Store
from millstream.stores.health import StoreHealth
from millstream.stores.memory.store import MemoryStore

if TYPE_CHECKING:
    from millstream.app.runtime import Runtime
    from millstream.hub import Hub
    from millstream.server.observing.observer import Observer
    from millstream.transports.websocket.route import WebSocketRoute
    from millstream.web.live import DashboardFeed

PARTS = ("hub", "rest", "web", "metrics")
_NEEDS = {"web": ("hub", "rest", "metrics")}
"""The pages show what the others do."""


def chosen(serve: str | Collection[str]) -> frozenset[str]:
    """The parts that a ``serve`` value names, with what they need.

    Raises:
        ValueError: an unknown part.
    """
    names = serve.replace(",", " ").split() if isinstance(serve, str) else list(serve)
    if "all" in names:
        return frozenset(PARTS)
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"Unknown part {unknown[0]!r} in serve: use {', '.join(PARTS)} or all")
    return frozenset(names).union(*(_NEEDS.get(name, ()) for name in names))


def make_websocket(runtime: "Runtime") -> "WebSocketRoute | None":
    """The handler of ``/ws``, where the hub is served."""
    if runtime.hub is None:
        return None
    from millstream.transports.websocket.route import WebSocketRoute  # noqa: PLC0415  only where a hub is served

    server = runtime.server
    return WebSocketRoute(
        runtime.dispatcher,
        runtime.hub,
        runtime.policy,
        server.settings,
        runtime.streams,
        may_publish=lambda address: not server.reachable_from_outside(address),
    )


async def open_hub(runtime: "Runtime") -> "Hub | None":
    """The hub of a running server, if it serves one."""
    if "hub" not in runtime.parts:
        return None
    from millstream.hub import Hub, HubLimits  # noqa: PLC0415  only where a hub is served

    server = runtime.server
    hub = Hub(runtime.services.store, HubLimits.of(server.settings), authorize=server.authorize_channel)
    await hub.open()
    return hub


def make_observer(runtime: "Runtime") -> "Observer | None":
    """Metrics, message log and traces, if any of them is on."""
    from millstream.server.observing.tracing import load_spans  # noqa: PLC0415  after the user's lifespan, which may set it up

    settings, server = runtime.server.settings, runtime.server
    spans = load_spans(server.version)
    if not (settings.access_log or spans is not None or "metrics" in runtime.parts):
        return None
    from millstream.server.observing.observer import Observer  # noqa: PLC0415  only where somebody looks
    from millstream.server.observing.tracing import Tracing  # noqa: PLC0415
    from millstream.telemetry.messages import MessageLog  # noqa: PLC0415

    log = MessageLog(sys.stderr) if settings.access_log else None
    observer = Observer(
        server.registry.tools,
        log=log,
        tracing=Tracing(spans) if spans is not None else None,
        connections=runtime.streams.by_kind,
    )
    read, health, hub = observer.registry.read, runtime.store_health, runtime.hub
    read("gauge", "hub_backend_up", "The store answers.", lambda: {(health.kind,): int(health.up)}, ("kind",))
    if hub is not None:
        read("counter", "hub_events_published_total", "Events published here.", lambda: {(): hub.stats().published})
        read("counter", "hub_events_delivered_total", "Events written.", lambda: {(): hub.stats().delivered})
        read(
            "counter",
            "hub_events_dropped_total",
            "Subscribers that were cut.",
            lambda: {(reason,): count for reason, count in hub.stats().cut.items()},
            ("reason",),
        )
        read(
            "counter",
            "hub_replay_total",
            "Subscribers that came back: all was told again, or there was a gap.",
            lambda: {(outcome,): count for outcome, count in hub.stats().replays.items()},
            ("outcome",),
        )
        read(
            "gauge",
            "hub_streams_active",
            "Subscribers now.",
            lambda: {(transport,): count for transport, count in hub.stats().transports.items()},
            ("transport",),
        )
        read("gauge", "hub_send_queue_bytes", "Bytes not yet taken.", lambda: {(): hub.queued_bytes()})
    return observer


_MAX_NAME = 1024


def make_note(observer: "Observer") -> ObserveMessage:
    """How messages that become no call reach the observer."""
    from millstream.telemetry.messages import AccessRecord  # noqa: PLC0415  only where somebody looks
    from millstream.telemetry.metrics import OTHER  # noqa: PLC0415

    def note(
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        opening: Opening | None = None,
    ) -> None:
        if method == SESSION_OVER:
            if session is not None:
                observer.session_ended(session.id)
            return
        # Neither was checked yet, and lines wait for their batch.
        method, target = method[:_MAX_NAME] or OTHER, target[:_MAX_NAME]
        message = AccessRecord(time.time(), method, target, status, transport=transport)
        about = session or opening
        if about is not None:
            message.client, message.client_version = about.client.name, about.client.version
            message.revision = about.revision.date
        if session is not None:
            message.session = session.id
        if principal is not None:
            message.principal = principal.id
        observer.message(message)

    return note


def part_routes(runtime: "Runtime") -> tuple[dict[str, dict[str, Handler]], list[tuple[str, Mapping[str, Handler]]]]:
    """(handlers by path, handlers by path prefix) of the parts that are served."""
    exact: dict[str, dict[str, Handler]] = {}
    prefixes: list[tuple[str, Mapping[str, Handler]]] = []
    parts = runtime.parts
    if runtime.hub is not None:
        from millstream.transports.hub_routes import HubRoutes  # noqa: PLC0415

        hub = HubRoutes(runtime.hub, runtime.streams, runtime.server.settings, note=runtime.services.note)
        exact["/events"] = {"GET": hub.events}
        exact["/publish"] = {"POST": runtime.local_only(hub.publish, message="hub/publish")}
        prefixes.append(("/mcp/sse/", {"GET": of_this_site(hub.client_stream)}))
        if runtime.websocket is not None:
            exact["/ws"] = {"GET": runtime.websocket.plain}
    if "rest" in parts:
        from millstream.transports.rest.routes import RestRoutes  # noqa: PLC0415
        from millstream.web import pages  # noqa: PLC0415

        rest = RestRoutes(runtime.dispatcher)
        exact["/mcp/tools/list"] = {"POST": rest.list_tools}
        exact["/mcp/tools/call"] = {"POST": rest.call_tool}
        exact["/openapi.json"] = {"GET": rest.describe}
        prefixes.append(("/tools/", {"POST": rest.run_tool}))
        shown = set(pages.page_names()) if "web" in parts else {"docs"}
        for path, handler in pages.pages().items():
            is_page = path.count("/") == 1
            if not is_page or path[1:] in shown:
                exact[path] = {"GET": runtime.local_only(handler) if is_page and path != "/docs" else handler}
    if runtime.feed is not None and runtime.hub is not None:
        from millstream.web.live import ChatMembers  # noqa: PLC0415

        exact["/dashboard/events"] = {"GET": runtime.local_only(runtime.feed.events)}
        exact["/chat/members"] = {"GET": runtime.local_only(ChatMembers(runtime.hub.presence).get)}
    if "metrics" in parts and runtime.observer is not None:
        from millstream.telemetry.endpoint import MetricsHttp  # noqa: PLC0415

        exact["/metrics"] = {
            "GET": runtime.local_only(MetricsHttp(runtime.observer.registry, measure=runtime.store_health.look).get)
        }
    return exact, prefixes


def make_feed(runtime: "Runtime") -> "DashboardFeed | None":
    """What the dashboard hears, where the pages are served."""
    observer, hub, server = runtime.observer, runtime.hub, runtime.server
    if "web" not in runtime.parts or observer is None or hub is None:
        return None
    from millstream.web.live import DashboardFeed, LogTail  # noqa: PLC0415  only where the pages are served

    info = {
        "name": server.name,
        "title": server.info.title or server.name,
        "version": server.version,
        "started": time.time(),
        "facts": {"Serves": ", ".join(["mcp", *sorted(runtime.parts)]), "Endpoint": server.settings.path},
    }
    health, store = runtime.store_health, runtime.services.store
    return DashboardFeed(
        lambda: observer.snapshot(hub=hub.stats(), store=store_figures(health, store)),
        LogTail(),
        runtime.streams,
        info=info,
        measure=health.look,
    )


def store_figures(health: StoreHealth, store: Store) -> dict[str, Any]:
    """Whether the store answers, and how full it is. Only the one in memory has a bound that its server can fill, and
    knows what it holds.
    """
    figures: dict[str, Any] = {"kind": health.kind, "up": health.up}
    if isinstance(store, MemoryStore):
        fullest = max((kind.size for kind in store.kv.kinds.values()), default=0)
        figures["values"] = {"bytes": fullest, "max_bytes": store.kv.max_bytes}
        figures["log"] = {
            name: {"bytes": part.size, "max_bytes": store.log.max_bytes} for name, part in store.log.kinds.items()
        }
    return figures


def no_hub() -> LocalError:
    """The error of who asks for a hub that is not there."""
    return LocalError("This server has no running hub: pass serve=('hub',) to Server, and use it while it runs.")
