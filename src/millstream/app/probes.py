"""`/health`, `/livez` and `/readyz`: how the server is, for operators, orchestrators and load balancers.

They answer anybody, under any Host: figures and names of kinds only, nothing that names a client, a path or an address.
What does not change while the server runs is computed once.
"""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from millstream.app.definition import Definition
from millstream.http.message import JSON_HEAD, TEXT_HEAD, Request, Response
from millstream.protocol.jsonrpc import encode
from millstream.protocol.revisions import ALL
from millstream.server.dispatch import Dispatcher
from millstream.server.sweep import Sweep
from millstream.stores.health import StoreHealth
from millstream.telemetry.process import resident_bytes
from millstream.transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream.hub import Hub
    from millstream.server.observing.observer import Observer

_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


class Probes:
    """The handlers. One for each running server."""

    __slots__ = (
        "_about", "_connections", "_dispatcher", "_draining", "_health", "_hub", "_limits", "_observer", "_streams",
        "_sweep",
    )  # fmt: skip

    def __init__(
        self,
        definition: Definition,
        dispatcher: Dispatcher,
        streams: OpenStreams,
        sweep: Sweep,
        health: StoreHealth,
        *,
        connections: Collection[object] | None,
        hub: "Hub | None",
        observer: "Observer | None",
        draining: Callable[[], bool],
    ) -> None:
        self._dispatcher = dispatcher
        self._streams = streams
        self._sweep = sweep
        self._health = health
        self._connections = connections
        self._hub = hub
        self._observer = observer
        self._draining = draining
        settings = definition.settings
        self._about: dict[str, Any] = {
            "name": definition.name,
            "version": definition.version,
            "revisions": [revision.date for revision in ALL],
            "serves": ["mcp", *sorted(definition.parts)],
        }
        self._limits = {
            "connections": settings.max_connections,
            "streams": settings.max_streams,
            "calls": settings.max_calls,
            "questions": settings.max_questions,
        }
        if hub is not None:
            self._limits["subscribers"] = hub.limits.max_connections

    async def live(self, request: Request) -> Response:
        """The loop turns: nothing else is asked."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: Request) -> Response:
        """Whether new work is welcome: not while the server drains, nor while its store does not answer."""
        if self._draining():
            return Response(b"draining\n", 503, _LATER)
        if not await self._health.look():
            return Response(b"the store does not answer\n", 503, _LATER)
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def health(self, request: Request) -> Response:
        """The facts. A store that does not answer makes no 503 here: to start the server again would not help."""
        up = await self._health.look()
        draining = self._draining()
        status = "draining" if draining else "ok" if up else "degraded"
        body = encode({"status": status, **self._about, **self._figures()})
        return Response(body, 503 if draining else 200, JSON_HEAD + _FRESH)

    def _figures(self) -> dict[str, Any]:
        sweep, services = self._sweep, self._dispatcher.services
        figures: dict[str, Any] = {"uptime_seconds": round(sweep.clock() - sweep.started, 3)}
        if self._connections is not None:
            figures["connections"] = len(self._connections)
        figures["streams"] = len(self._streams)
        figures["streams_by_transport"] = self._streams.by_transport()
        figures["calls"] = len(self._dispatcher.calls)
        figures["questions"] = len(services.questions)
        if self._hub is not None:
            figures["subscribers"] = self._hub.stats().subscribers
        if self._observer is not None:
            figures["sessions"] = self._observer.sessions()
        figures["session_records"] = len(services.records.known)
        figures["limits"] = self._limits
        figures["store"] = {"kind": self._health.kind, "up": self._health.up}
        figures["loop_lag_ms"] = round(sweep.lag * 1000, 3)
        figures["memory_bytes"] = resident_bytes()
        return figures
