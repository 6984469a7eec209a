"""What runs beside MCP (``Server(serve=…)``): the hub, REST, the pages, metrics; how each is made.

A server that serves none of them imports none of them.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from millstream._app.definition import Definition
from millstream._protocol.handshake import Opening
from millstream._protocol.principal import Principal
from millstream._server.calls.notes import SESSION_OVER, ObserveMessage
from millstream._server.calls.sessions import Session
from millstream._server.dispatch import Dispatcher
from millstream._server.features.hooks import Hooks
from millstream._stores.base import Store
from millstream._stores.health import StoreHealth
from millstream._stores.memory.store import MemoryStore
from millstream._stores.parent import parent_address
from millstream._telemetry.logs import overhear
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._app.looking import Live
    from millstream._server.features.around import Around
    from millstream._server.observing.observer import Observer
    from millstream._telemetry.metrics import Metrics
    from millstream.hub import Hub


def make_around(definition: Definition) -> "Around | None":
    """The middleware for messages and lists, where this server or one that is mounted on it has some."""
    if not definition.has_wide_hooks():
        return None
    from millstream._server.features.around import Around  # noqa: PLC0415  only where there is such middleware

    return Around(definition.hooks or Hooks(definition), definition.registry)


def make_observer(
    definition: Definition, *, streams: OpenStreams, health: StoreHealth, hub: "Hub | None"
) -> "Observer | None":
    """Metrics, message log and traces, if any of them is on."""
    from millstream._server.observing.tracing import load_spans  # noqa: PLC0415  after the user's lifespan, which may set it up

    settings = definition.settings
    spans = load_spans(definition.version)
    if not (settings.access_log or spans is not None or "metrics" in definition.parts):
        return None
    from millstream._server.observing.observer import Observer  # noqa: PLC0415  only where somebody looks
    from millstream._server.observing.tracing import Tracing  # noqa: PLC0415
    from millstream._telemetry.messages import MessageLog  # noqa: PLC0415

    log = MessageLog(sys.stderr) if settings.access_log else None
    observer = Observer(
        definition.registry.tools,
        log=log,
        tracing=Tracing(spans) if spans is not None else None,
        connections=streams.by_kind,
    )
    read = observer.registry.read
    read("gauge", "hub_backend_up", "The store answers.", lambda: _by({health.kind: health.up}), ("kind",), merge="min")
    if hub is not None:
        _measure_hub(observer.registry, hub)
    return observer


def _measure_hub(metrics: "Metrics", hub: "Hub") -> None:
    read, stats = metrics.read, hub.stats
    back = "Subscribers that came back: all was told again, or there was a gap."
    read("counter", "hub_events_published_total", "Events published here.", lambda: {(): stats().published})
    read("counter", "hub_events_delivered_total", "Events written.", lambda: {(): stats().delivered})
    read("counter", "hub_events_dropped_total", "Subscribers that were cut.", lambda: _by(stats().cut), ("reason",))
    read("counter", "hub_replay_total", back, lambda: _by(stats().replays), ("outcome",))
    read("gauge", "hub_streams_active", "Subscribers now.", lambda: _by(stats().transports), ("transport",))
    read("gauge", "hub_send_queue_bytes", "Bytes not yet taken.", lambda: {(): hub.queued_bytes()})


async def metrics_of_machine(metrics: "Metrics", stack: AsyncExitStack) -> Callable[[], Awaitable[bytes]]:
    """What renders the metrics: those of this process, or of all workers where there are several."""
    if parent_address() is None:

        async def render() -> bytes:
            return metrics.render()

        return render
    from millstream._app.machine import open_machine_metrics  # noqa: PLC0415  only for workers

    return (await open_machine_metrics(metrics, stack)).render


def _by(counts: Mapping[str, int]) -> dict[tuple[str, ...], float]:
    return {(name,): int(count) for name, count in counts.items()}


_MAX_NAME = 1024


def make_note(observer: "Observer") -> ObserveMessage:
    """How messages that become no call reach the observer."""
    from millstream._telemetry.messages import AccessRecord  # noqa: PLC0415  only where somebody looks
    from millstream._telemetry.metrics import OTHER  # noqa: PLC0415

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


def open_feed(
    definition: Definition, dispatcher: Dispatcher, observer: "Observer", hub: "Hub", stack: AsyncExitStack, *,
    streams: OpenStreams, health: StoreHealth,
) -> "Live":  # fmt: skip
    """What the dashboard hears and what it asks for, of all workers, for the life of the stack."""
    from millstream._app.fleet import Fleet  # noqa: PLC0415  only where the pages are served
    from millstream._app.looking import Live, Looking  # noqa: PLC0415
    from millstream._server.observing.recent_calls import RecentCalls  # noqa: PLC0415
    from millstream._web.live import DashboardFeed, LogTail  # noqa: PLC0415

    info = {
        "name": definition.name,
        "title": definition.info.title or definition.name,
        "version": definition.version,
        "started": time.time(),
        "facts": {"Serves": ", ".join(["mcp", *sorted(definition.parts)]), "Endpoint": definition.settings.path},
    }
    services = dispatcher.services
    store = services.store
    calls = RecentCalls(dispatcher.observe)
    dispatcher.observe = calls.observe
    fleet = Fleet(services.peers, store.workers, observer.figures, hub=lambda: asdict(hub.stats()))

    async def measure() -> None:
        fleet.watch()
        await health.look()

    feed = DashboardFeed(
        lambda: fleet.snapshot(store=store_figures(health, store)), LogTail(), streams, info=info, measure=measure
    )
    stack.callback(overhear(feed.log))
    looking = Looking(services.peers, observer, calls, streams=streams, hub=hub)
    for running in (feed.run(), fleet.run(), looking.run()):
        stack.callback(asyncio.create_task(running).cancel)
    return Live(feed, looking)


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
