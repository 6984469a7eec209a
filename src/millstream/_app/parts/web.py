"""The pages (dashboard, chat, inspector, and API documents) and their data.

The dashboard shows all workers together, but each worker keeps its own data. The worker that serves a dashboard queries
the others (`WorkerQueries`) and adds their replies up. Without a dashboard, nothing is sent.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from millstream._app.definition import Definition
from millstream._app.parts import OwnPart
from millstream._http.message import Handler, HttpRequest, Response, query_value
from millstream._parts import WATCH, PartHost, Route, UpstreamReports
from millstream._protocol.jsonrpc import Json
from millstream._server.observability import Figures, dashboard_values, history_values
from millstream._server.observability.recent_calls import RecentCalls, WorkerCalls, call_values
from millstream._server.worker_queries import WorkerQueries, WorkerQuestion, encode
from millstream._stores.health import StoreHealth
from millstream._stores.memory.store import MemoryBackend
from millstream._telemetry.logs import capture_logs, capture_prints
from millstream._telemetry.process import STEPS, Gauges, History, HistoryWindow, resident_bytes
from millstream._transports.open_streams import OpenStreams
from millstream._troubles import LogOnce
from millstream._web.live import (
    DashboardFeed,
    LogTail,
    audit_handler,
    connect_handler,
    log_handler,
    reply,
)

if TYPE_CHECKING:
    from millstream._server.observability.observer import Observer
    from millstream.hub import Hub, Subscription


READERS = 30
MAX_CHANNELS = 100
"""Maximum channels to show per worker, starting with the channels that have the most subscribers."""
FRESH = 5.0
"""Seconds that the figures of a silent worker are still shown."""


class ReaderRow(Struct, array_like=True, frozen=True):
    """An open stream, and how far its reader is behind."""

    transport: str
    who: str
    channels: list[str]
    seconds: float | None
    """Seconds since it was opened, if known."""
    waiting: int
    """Bytes that it hasn't read yet."""


_OF_HUB = frozenset(("events", "websocket"))
"""Transports whose readers and channels the hub tracks."""


@dataclass(eq=False)
class DashboardQueries:
    """Answers queries for this worker and queries the others. `run` records."""

    workers: WorkerQueries
    """Sends questions to all workers."""
    observer: "Observer"
    """Source of the counts."""
    recent: RecentCalls
    streams: OpenStreams
    """Open streams of this worker."""
    hub: "Hub"
    """The hub with the subscribers."""
    me: str
    """Name of this worker."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._figures: dict[str, tuple[float, Figures]] = {}
        """Latest figures of the workers, and when they were asked for."""
        self._history = History(self.observer.durations.bounds)
        self._cpu = time.process_time()
        for about, answer in {
            "figures": self._describe_figures,
            "history": self._describe_history,
            "calls": self._describe_calls,
            "readers": self._describe_readers,
        }.items():
            self.workers.answer(about, answer)

    async def run(self) -> None:
        """Record counts each second until canceled. The runtime owns the task."""
        trouble = LogOnce(
            None,  # no call fails
            "The counts for the dashboard can't be recorded; retrying",
            "The counts for the dashboard can be recorded again.",
            catches=Exception,
        )
        while True:
            now = time.time()
            with trouble:
                self.remember(int(now) - 1)
            await asyncio.sleep(1.02 - now % 1)

    def remember(self, second: int) -> None:
        """Record the counts since the last call as the counts of this second."""
        cpu = time.process_time()
        used, self._cpu = cpu - self._cpu, cpu
        gauges = Gauges(self.observer.lag.worst_of(1.0), used, resident_bytes() or 0)
        self._history.take(second, self.observer.calls(), gauges)

    # Queries of the pages

    async def measure(self) -> None:
        """Ask the workers for their figures. `snapshot` includes the replies, and for a while those of silent ones."""
        now = self.clock()
        found = (await self.workers.ask(WorkerQuestion("figures"), Figures)).found
        fresh = {name: each for name, each in self._figures.items() if now - each[0] <= FRESH}
        self._figures = fresh | {each.name: (now, each) for each in found}

    def snapshot(self, *, store: Any = None) -> Json:
        """Return the sums over all workers, and a row for each."""
        figures = {name: each for name, (_, each) in self._figures.items()}
        return dashboard_values({**figures, self.me: self._own()}, self.me, store=store)

    def _own(self) -> Figures:
        return self.observer.figures(self.me, hub=structs.asdict(self.hub.stats()))

    async def history(self, seconds: int, method: str = "", name: str = "") -> Json:
        """Return the most recent seconds, as in `history_values`, and for a method also its points.

        If the server is younger, the period is the shortest that covers its life, which has the finest points.
        """
        period = _period(seconds)
        found = await self._windows(period, method, name)
        lived = max(each.until - min(each.points, default=each.until) for each in found)
        if (shorter := _period(lived)) < period:
            period, found = shorter, await self._windows(shorter, method, name)
        return history_values(found, period)

    async def _windows(self, period: int, method: str, name: str) -> list[HistoryWindow]:
        return (await self.workers.ask(WorkerQuestion("history", period, method, name), HistoryWindow)).found

    async def calls(self) -> Json:
        """Return the most recent calls, with their clients and errors."""
        return call_values((await self.workers.ask(WorkerQuestion("calls"), WorkerCalls)).found)

    async def readers(self) -> Json:
        """Return the streams with the slowest readers."""
        answers = await self.workers.ask(WorkerQuestion("readers"), list[ReaderRow])
        found = [each for answer in answers.found for each in answer]
        found.sort(key=lambda each: (-each.waiting, -(each.seconds or 0)))
        return {"readers": [structs.asdict(each) for each in found[:READERS]]}

    async def _describe_figures(self, question: WorkerQuestion) -> bytes:
        return encode(_with_few_channels(self._own()))

    async def _describe_history(self, question: WorkerQuestion) -> bytes:
        chosen = (question.method, question.name) if question.method else None
        return await asyncio.to_thread(lambda: encode(self._history.look(question.seconds, chosen)))

    async def _describe_calls(self, question: WorkerQuestion) -> bytes:
        return encode(self.recent.look())

    async def _describe_readers(self, question: WorkerQuestion) -> bytes:
        return encode(self._slowest())

    def _slowest(self) -> list[ReaderRow]:
        subscribers = [_reader(each) for each in self.hub.slowest(READERS)]
        streams = [
            ReaderRow(transport, owner, [], round(seconds, 1), waiting)
            for transport, owner, seconds, waiting in self.streams.slowest(READERS)
            if transport not in _OF_HUB
        ]
        return [*subscribers, *streams]


def _period(seconds: int) -> int:
    """Return the shortest available period of at least `seconds`, else the longest."""
    return min((each for each in STEPS if each >= seconds), default=max(STEPS))


def _with_few_channels(figures: Figures) -> Figures:
    """Limit the number of channels in a message: there may be one for each client."""
    hub = figures.hub
    if hub is None or len(hub["channels"]) <= MAX_CHANNELS:
        return figures
    channels: Mapping[str, int] = hub["channels"]
    largest = nlargest(MAX_CHANNELS, channels.items(), key=lambda item: (item[1], item[0]))
    return structs.replace(figures, hub={**hub, "channels": dict(largest)})


def _reader(subscriptions: tuple["Subscription", ...]) -> ReaderRow:
    """Return the reader of the stream that these subscriptions share."""
    first = subscriptions[0]
    named = (each.member.name or each.member.client_id for each in subscriptions if each.member is not None)
    channels = [channel for each in subscriptions for channel in each.channels]
    return ReaderRow(first.transport, next(named, first.address), channels[:8], None, first.outlet.buffered)


class WebPart(OwnPart):
    """Serves the pages, and collects data for the dashboard."""

    name: str = "web"
    needs: Collection[str] = ("hub", "rest", "metrics", "observation")

    async def open(self, host: PartHost) -> None:
        """Start collecting data."""
        definition, store, health = self.definition, host.store, host.store_health
        observer, hub = host.observer, host.hub
        assert observer is not None and hub is not None  # noqa: S101, PT018  it needs both
        calls = RecentCalls()
        host.observe(calls.observe)
        queries = DashboardQueries(host.queries, observer, calls, streams=host.streams, hub=hub, me=store.workers.me)

        async def measure() -> None:
            await queries.measure()
            await health.look()

        feed = DashboardFeed(
            lambda: queries.snapshot(store=store_figures(health)),
            LogTail(),
            host.streams,
            info={
                "name": definition.name,
                "title": definition.title,
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
            **_query_handlers(queries),
            "/dashboard/audit": audit_handler(host.settings.audit_log),
            "/dashboard/events": feed.events,
        }
        if host.gateway is not None:
            info = {"title": definition.title, "version": definition.version}
            dashboard |= _upstream_handlers(host, host.gateway, info)
        for path, handler in dashboard.items():
            is_stream = path == "/dashboard/events"
            host.routes.add(path, Route({"GET": handler}, stream=is_stream, scope=WATCH, private=True, charged=""))
        if host.settings.show_errors:
            host.on_close(capture_prints(feed.log))
            from millstream._app.server_process.worker_process import failed_restart  # noqa: PLC0415  in development

            developing = log_handler(feed.log, host.streams, failed_restart)
            host.routes.add("/inspect/log", Route({"GET": developing}, stream=True, local=True, charged=""))
        host.on_http(lambda: _serve(host, definition))


def _query_handlers(queries: DashboardQueries) -> Mapping[str, Handler]:
    """Return the GET handlers of the dashboard other than its stream, by path."""

    async def history(request: HttpRequest) -> Response:
        """Handle ``?seconds=`` up to a day; ``?method=`` and ``?name=`` add the series of one operation."""
        text = query_value("seconds", request.query)
        seconds = int(text) if text.isdecimal() and len(text) < 8 else 60
        method, name = query_value("method", request.query), query_value("name", request.query)
        return reply(await queries.history(seconds, method, name))

    async def calls(request: HttpRequest) -> Response:
        return reply(await queries.calls())

    async def readers(request: HttpRequest) -> Response:
        return reply(await queries.readers())

    return {"/dashboard/history": history, "/dashboard/calls": calls, "/dashboard/readers": readers}


def _upstream_handlers(host: PartHost, gateway: UpstreamReports, info: Mapping[str, str]) -> Mapping[str, Handler]:
    """Return the GET handlers of the gateway's page by path. `info` is the title and version of the server."""

    async def describe(request: HttpRequest) -> Response:
        await gateway.ask_workers()
        kinds = {"configuration": dict, "sets": list, "events": list}
        reports = {name: host.reports.get(name, kind)() for name, kind in kinds.items()}
        approvals = await gateway.count_approvals()
        return reply({**info, "upstreams": gateway.describe_all(), "approvals": approvals, **reports})

    async def items(request: HttpRequest) -> Response:
        """Handle ``?upstream=``, the name of an upstream."""
        found = gateway.items(query_value("upstream", request.query))
        return reply({"error": "There is no such upstream."}, 404) if found is None else reply(found)

    return {"/gateway/upstreams": describe, "/gateway/items": items}


def _serve(host: PartHost, definition: Definition) -> None:
    from millstream._http.hosts import require_same_site  # noqa: PLC0415  a server without HTTP does without these
    from millstream._transports.websocket import WebSocketRoute  # noqa: PLC0415
    from millstream._web.inspector import (  # noqa: PLC0415
        CALLBACK,
        PREFIX,
        SIGN_IN,
        Inspector,
    )
    from millstream._web.pages import APP_PATH, add_pages, page_names, show_app  # noqa: PLC0415
    from millstream._web.playground import PATH, SOCKET_PATH, Playground  # noqa: PLC0415

    routes = host.routes
    missing = () if host.gateway is not None else ("gateway",)
    shown = [each for each in page_names() if each not in missing]
    add_pages(routes, shown, account=host.guard is not None)
    routes.home = "/connect", routes.exact["/connect"].handlers["GET"]
    public = [each for each in shown if not routes.exact[f"/{each}"].private]
    facts = connect_handler(host, shown, public=public)
    routes.add("/connect/server", Route({"GET": facts}))
    server = {"title": definition.title, "version": definition.version}
    playground = Playground(host, definition.name, server)
    socket = WebSocketRoute(
        host.dispatcher.served[0], None, host.policy, host.streams, guard=playground.admit, dialect=playground.open
    )
    host.sockets[SOCKET_PATH] = socket
    host.on_drain(socket.close)
    routes.add(PATH, Route({"GET": playground.status}, private=True))
    routes.add(SOCKET_PATH, Route({"GET": socket.plain}, private=True))
    inspecting = Inspector(host)
    forward, sign_in = inspecting.forward, inspecting.sign_in
    # The document has no content of its own. The embedding page sends everything that it shows.
    routes.add(APP_PATH, Route({"GET": show_app}, public=True))
    routes.add("/inspect/servers", Route({"GET": inspecting.servers, "POST": inspecting.add}, local=True))
    # The redirect comes from another site, without the sign-in cookie, so the handler identifies the user itself.
    routes.add(CALLBACK, Route({"GET": inspecting.sign_ins.handle_callback}, local=True, public=True))
    routes.add_prefix(SIGN_IN, Route({"POST": sign_in, "DELETE": sign_in}, local=True))
    routes.add_prefix(
        PREFIX, Route({"POST": forward, "DELETE": forward, "GET": require_same_site(forward)}, local=True)
    )


def store_figures(health: StoreHealth) -> Json:
    """Return whether the store responds, and how full it is. Only the memory store knows its size and has a limit that
    its server can reach.
    """
    figures: Json = {"kind": health.kind, "up": health.up}
    backend = getattr(health.store, "backend", None)
    if not isinstance(backend, MemoryBackend):
        return figures
    return figures | {
        "values": {
            "bytes": max((kind.size for kind in backend.kv.kinds.values()), default=0),
            "max_bytes": backend.kv.max_bytes,
        },
        "log": {
            name: {"bytes": part.size, "max_bytes": backend.log.max_bytes} for name, part in backend.log.kinds.items()
        },
    }
