"""`/health`, `/livez` and `/readyz`: how the server is, for operators, orchestrators and load balancers.

They answer anybody, under any Host: figures and names of kinds only, nothing that names a client, a path or an address.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream._app.definition import Definition
from millstream._http.message import JSON_HEAD, TEXT_HEAD, Request, Response
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import ALL
from millstream._server.dispatch import Dispatcher
from millstream._server.sweep import Sweep
from millstream._stores.health import StoreHealth
from millstream._telemetry.process import resident_bytes
from millstream._transports.open_streams import OpenStreams

if TYPE_CHECKING:
    from millstream._server.observing.observer import Observer
    from millstream.hub import Hub

_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


@dataclass(slots=True, eq=False)
class Probes:
    """The handlers. One for each running server."""

    definition: Definition
    dispatcher: Dispatcher
    streams: OpenStreams
    sweep: Sweep
    store: StoreHealth
    connections: Collection[object] | None
    seats: Collection[object]
    hub: "Hub | None"
    observer: "Observer | None"
    draining: Callable[[], bool]

    async def live(self, request: Request) -> Response:
        """The loop turns: nothing else is asked."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: Request) -> Response:
        """Whether new work is welcome: not while the server drains.

        A store that doesn't answer changes nothing: plain calls need none, and one pause of a shared store would take
        away every worker at once. `/health` says so.
        """
        if self.draining():
            return Response(b"draining\n", 503, _LATER)
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def health(self, request: Request) -> Response:
        """The facts. A store that does not answer makes no 503 here: to start the server again would not help."""
        up = await self.store.look()
        draining = self.draining()
        status = "draining" if draining else "ok" if up else "degraded"
        body = encode({"status": status, **self._figures()})
        return Response(body, 503 if draining else 200, JSON_HEAD + _FRESH)

    def _figures(self) -> dict[str, Any]:
        definition, settings, sweep = self.definition, self.definition.settings, self.sweep
        services = self.dispatcher.services
        figures: dict[str, Any] = {
            "name": definition.name,
            "version": definition.version,
            "revisions": [revision.date for revision in ALL],
            "serves": ["mcp", *sorted(definition.parts)],
            "uptime_seconds": round(sweep.clock() - sweep.started, 3),
            "streams": len(self.streams),
            "streams_by_transport": self.streams.by_transport(),
            "calls": len(self.dispatcher.calls),
            "questions": len(services.questions),
            "session_records": len(services.records.known),
            "store": {"kind": self.store.kind, "up": self.store.up},
            "loop_lag_ms": round(sweep.lag * 1000, 3),
            "memory_bytes": resident_bytes(),
        }
        limits = figures["limits"] = {
            "connections": settings.max_connections,
            "streams": settings.max_streams,
            "calls": settings.max_calls,
            "questions": settings.max_questions,
        }
        if self.connections is not None:
            figures["connections"] = len(self.connections)
        if self.seats:
            figures["workers"] = list(self.seats)
        if self.hub is not None:
            figures["subscribers"] = self.hub.stats().subscribers
            limits["subscribers"] = self.hub.limits.max_connections
        if self.observer is not None:
            figures["sessions"] = self.observer.sessions()
        return figures
