"""`/health`, `/livez`, and `/readyz`: the state of the server for operators, orchestrators, and load balancers.

They respond to every client with any Host. Only clients that may read the dashboard get reasons and figures; others get
the status, and how many workers and upstreams are healthy.
"""

from typing import TYPE_CHECKING, Any

from millstream._app.parts import OwnPart
from millstream._http.message import JSON_HEAD, TEXT_HEAD, HttpRequest, Response
from millstream._parts import WATCH, Host, Route
from millstream._protocol.jsonrpc import encode
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL
from millstream._telemetry.process import resident_bytes

if TYPE_CHECKING:
    from millstream._app.server_process.workers.messages import WorkerState

_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


class ProbesPart(OwnPart):
    """Serves the three paths."""

    name: str = "probes"

    async def open(self, host: Host) -> None:
        """Add the paths."""
        for path, handler in {"/health": self.health, "/livez": self.live, "/readyz": self.ready}.items():
            host.routes.add(path, Route({"GET": handler}, public=True))
        self._host = host

    async def live(self, request: HttpRequest) -> Response:
        """Respond while the event loop is running."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: HttpRequest) -> Response:
        """Return whether to send new work here: not while the server drains.

        An unavailable store doesn't change that: plain calls don't need it, and a pause of a shared store would remove
        all workers at once. A degraded server is ready, too, and says why.
        """
        if self._host.draining():
            return Response(b"draining\n", 503, _LATER)
        reasons = self._host.degraded_reasons()
        if reasons:
            text = f"degraded: {'; '.join(reasons)}" if await self._may_watch(request) else "degraded"
            return Response(b"%b\n" % text.encode(), 200, TEXT_HEAD)
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def health(self, request: HttpRequest) -> Response:
        """Return the facts. What's outside of this server isn't a 503, because a restart wouldn't help."""
        host = self._host
        up = await host.store_health.look()
        draining, reasons = host.draining(), host.degraded_reasons()
        facts: dict[str, Any] = {"status": "draining" if draining else "degraded" if reasons or not up else "ok"}
        if await self._may_watch(request):
            facts |= {**({"reasons": reasons} if reasons else {}), **self._figures()}
        else:
            facts |= self._counts()
        fails = draining or host.degraded_reasons(any_kind=False)
        return Response(encode(facts), 503 if fails else 200, JSON_HEAD + _FRESH)

    async def _may_watch(self, request: HttpRequest) -> bool:
        """Return whether a client may read the dashboard."""
        guard = self._host.guard
        if guard is None:
            return self._host.is_local(request.peer, request.headers)
        found = await guard(request)
        return isinstance(found, Principal) and found.has({WATCH})

    def _counts(self) -> dict[str, dict[str, int]]:
        """Return how many workers and upstreams there are, and how many are healthy."""
        read = self._host.reports
        workers: list[WorkerState] = read["workers"]() or []
        upstreams: dict[str, str] = (read["upstreams"]() or {}) if "upstreams" in read else {}
        states = {"workers": [each.state for each in workers], "upstreams": list(upstreams.values())}
        return {name: {"ready": found.count("ready"), "all": len(found)} for name, found in states.items() if found}

    def _figures(self) -> dict[str, Any]:
        host, definition = self._host, self.definition
        services, settings, sweep = host.services, host.settings, host.sweep
        return {
            "name": definition.name,
            "version": definition.version,
            "revisions": [revision.date for revision in ALL],
            "serves": ["mcp", *sorted(definition.parts)],
            "uptime_seconds": round(sweep.clock() - sweep.started, 3),
            "streams": len(host.streams),
            "streams_by_transport": host.streams.by_transport(),
            "calls": len(host.dispatcher.calls),
            "questions": len(services.questions),
            "session_records": len(services.records.known),
            "store": {"kind": host.store_health.kind, "up": host.store_health.up},
            "loop_lag_ms": round(sweep.lag * 1000, 3),
            "memory_bytes": resident_bytes(),
            "limits": {
                "connections": settings.max_connections,
                "streams": settings.max_streams,
                "calls": settings.max_calls,
                "questions": settings.max_questions,
                **host.limits,
            },
            **{name: figure for name, read in host.reports.items() if (figure := read()) is not None},
        }
