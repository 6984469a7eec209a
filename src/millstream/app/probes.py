"""`/health`, `/livez` and `/readyz`: how the server is, for operators, orchestrators and load balancers.

They answer anybody, under any Host: figures and names of kinds only, nothing that names a client, a path or an address.
What does not change while the server runs is computed once.
"""

from typing import TYPE_CHECKING, Any

from millstream.http.message import JSON_HEAD, TEXT_HEAD, Request, Response
from millstream.protocol.jsonrpc import encode
from millstream.protocol.revisions import ALL
from millstream.telemetry.process import resident_bytes

if TYPE_CHECKING:
    from millstream.app.runtime import Runtime

_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


class Probes:
    """The handlers. One for each running server."""

    __slots__ = ("_about", "_limits", "_runtime")

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime
        server, settings = runtime.server, runtime.server.settings
        self._about: dict[str, Any] = {
            "name": server.name,
            "version": server.version,
            "revisions": [revision.date for revision in ALL],
            "serves": ["mcp", *sorted(runtime.parts)],
        }
        self._limits = {
            "connections": settings.max_connections,
            "streams": settings.max_streams,
            "calls": settings.max_calls,
            "questions": settings.max_questions,
        }
        if runtime.hub is not None:
            self._limits["subscribers"] = runtime.hub.limits.max_connections

    async def live(self, request: Request) -> Response:
        """The loop turns: nothing else is asked."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: Request) -> Response:
        """Whether new work is welcome: not while the server drains, nor while its store does not answer."""
        if self._runtime.draining:
            return Response(b"draining\n", 503, _LATER)
        if not await self._runtime.store_health.look():
            return Response(b"the store does not answer\n", 503, _LATER)
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def health(self, request: Request) -> Response:
        """The facts. A store that does not answer makes no 503 here: to start the server again would not help."""
        up = await self._runtime.store_health.look()
        draining = self._runtime.draining
        status = "draining" if draining else "ok" if up else "degraded"
        body = encode({"status": status, **self._about, **self._figures()})
        return Response(body, 503 if draining else 200, JSON_HEAD + _FRESH)

    def _figures(self) -> dict[str, Any]:
        runtime = self._runtime
        figures: dict[str, Any] = {"uptime_seconds": round(runtime.clock() - runtime.started, 3)}
        if runtime.server.connections is not None:
            figures["connections"] = len(runtime.server.connections)
        figures["streams"] = len(runtime.streams)
        figures["streams_by_transport"] = runtime.streams.by_transport()
        figures["calls"] = len(runtime.dispatcher.calls)
        figures["questions"] = len(runtime.services.questions)
        if runtime.hub is not None:
            figures["subscribers"] = runtime.hub.stats().subscribers
        if runtime.observer is not None:
            figures["sessions"] = runtime.observer.sessions()
        figures["session_records"] = len(runtime.services.records.known)
        figures["limits"] = self._limits
        figures["store"] = {"kind": runtime.store_health.kind, "up": runtime.store_health.up}
        figures["loop_lag_ms"] = round(runtime.lag * 1000, 3)
        figures["memory_bytes"] = resident_bytes()
        return figures
