"""Parts for operators: the audit log, metrics, and health."""

import asyncio
import logging
import time
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from millstream._app.parts import OwnPart
from millstream._http.message import JSON_HEAD, TEXT_HEAD, HttpRequest, Response, peer_network
from millstream._limits import Limiter, Rate
from millstream._override import override
from millstream._parts import WATCH, PartHost, Route
from millstream._protocol.admission import target_name
from millstream._protocol.errors import OVERLOADED, LocalError, ProtocolError
from millstream._protocol.jsonrpc import Json, encode
from millstream._protocol.principal import Principal
from millstream._protocol.revisions import ALL
from millstream._server.calls.call import Call
from millstream._server.calls.services import APPROVAL
from millstream._server.calls.sessions import Session
from millstream._server.worker_queries import Answers, WorkerQuestion
from millstream._server.worker_queries import encode as encode_answer
from millstream._stores import open_store
from millstream._stores.health import FRESH_SECONDS
from millstream._stores.store import Store
from millstream._stores.workers import parent_address, read_again
from millstream._telemetry.logs import stamp
from millstream._telemetry.messages import AuditEntry, AuditLog, session_hash
from millstream._telemetry.metrics import EndedProcesses, Metrics, dump, metrics_handler, render_sums
from millstream._telemetry.metrics import render as metrics_text
from millstream._telemetry.process import resident_bytes
from millstream._troubles import LogOnce, Trouble, Troubles, join_store_troubles, merge_troubles

if TYPE_CHECKING:
    from millstream._app.server_process.worker_process import WorkerState


logger = logging.getLogger("millstream")


_CALLS = frozenset({"tools/call", "prompts/get", "resources/read", "completion/complete"})
"""Methods that a client cancels. Others, such as streams of events, end when the client has what it wants."""
_ASKS = b'"resultType":"input_required"'
_HEAD = 512
"""Bytes at the beginning of an answer that have the type of its result."""


class AuditPart(OwnPart):
    """Writes calls and publications with their outcome, and rejected credentials up to a rate, to the audit log.

    A line counts the records that couldn't be written before it. With the setting `audit_required`, calls are refused
    until that line is there.
    """

    name: str = "audit"
    _log: AuditLog
    _trouble: LogOnce
    _refusals: Limiter
    """Limits records of rejected credentials per address."""

    async def open(self, host: PartHost) -> None:
        """Open the audit log.

        Raises:
            LocalError: The file can't be used.
        """
        self._log = log = AuditLog(Path(self.definition.settings.audit_log))
        required = self.definition.settings.audit_required
        self._trouble = LogOnce(
            host.store.troubles,
            f"The audit log can't be written, and calls {'are refused' if required else 'continue without it'}",
            "The audit log can be written again. A line in it counts what is missing.",
            remedy="Free space on its disk, or correct the permissions of its file.",
        )
        self._lost = 0
        host.every_second(lambda _: self._report_lost())
        if required:
            host.gate(self._require)
        if host.metrics is not None:
            text = "Records that the audit log couldn't be written for."
            host.metrics.read("counter", "millstream_audit_lost_total", text, lambda: {(): self._lost})
        host.check_ready(lambda: "the audit log can't be written" if log.lost else "", serves=not required)
        host.observe(self._observe)
        host.observe_messages(self._observe_message)
        if host.guard is not None:
            # Credentials that don't count as guesses aren't limited, so their records are.
            guesses = Rate.of(host.settings.limit_failed_sign_ins)
            self._refusals = Limiter("refusals", Rate(2 * guesses.count, guesses.seconds))
            host.services.on_failed_sign_in = self._refuse

    @override
    async def close(self) -> None:
        """Write pending lines and close the file."""
        self._log.close()

    def _observe(self, call: Call, seconds: float, answer: bytes) -> None:
        outcome = "ok"
        if call.failure is not None:
            outcome = call.failure.outcome
        elif call.cancelled and call.method in _CALLS:
            outcome = "cancelled"
        elif _ASKS in answer[:_HEAD]:
            outcome = "input_required"
        client, rounds = call.client, call.rounds
        entry = AuditEntry(
            "",
            call.method,
            call.item
            or (call.tool is not None and call.tool.main_name)
            or call.name
            or target_name(call.method, call.params),
            outcome,
            address="" if call.origin is None else call.origin.peer,
            transport=call.transport,
            session="" if call.session is None else session_hash(call.session.id),
            set=call.dispatcher.address.name,
            program=f"{client.name} {client.version}".strip(),
            trace=call.trace,
            call="" if rounds is None else rounds.id,
            approver=call.approver,
            read=call.read,
        )
        self._write(entry, call.principal)

    def _observe_message(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        **_: object,
    ) -> None:
        """Write publications and approvals, which aren't calls."""
        if method in ("hub/publish", APPROVAL):
            self._write(AuditEntry("", method, target, status or "ok", address=address, transport=transport), principal)

    def _refuse(self, address: str) -> None:
        if self._refusals.take(peer_network(address)) <= 0:
            self._write(AuditEntry("", "sign-in", "", "refused", address=address))

    def _write(self, entry: AuditEntry, principal: Principal | None = None) -> None:
        entry.at = stamp(time.time())
        if principal is not None:
            entry.subject, entry.issuer, entry.client = principal.subject, principal.issuer, principal.client
        with self._trouble:
            try:
                self._log.write(entry)
            except OSError:
                self._lost += 1
                raise

    def _report_lost(self) -> None:
        """Write what is missing, as soon as there's room."""
        if self._log.lost:
            with self._trouble:
                self._log.report_lost()

    def _require(self, call: Call) -> None:
        """Refuse a call that couldn't be recorded."""
        self._report_lost()
        if self._log.lost:
            text = "This server records each call, and its audit log can't be written at the moment. Try again later."
            raise ProtocolError(OVERLOADED, text, status=503)


INTERVAL = 1.0
_KEPT = "metrics:"
_ENDED = "ended-metrics"
_TTL = 30 * 86400.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(EndedProcesses).decode


class MachineMetrics(Struct, eq=False):
    """The metrics of this worker, combined with the metrics of the other workers on this machine.

    Each worker stores its figures with the parent process every second if they changed, and before rendering. When a
    worker exits, its figures are added to a common record, so the sums keep them.
    """

    metrics: Metrics
    store: Store
    """A store shared only by this machine's workers."""
    troubles: Troubles
    _left: bytes = b""
    """The figures stored last."""

    async def render(self) -> bytes:
        """Return the sums over all workers as Prometheus text, or this worker's figures if the parent is
        unavailable.
        """
        try:
            await self.leave()
            return await self._sums()
        except (LocalError, OSError) as exc:
            logger.warning("The metrics cover only one worker, because the others can't be queried: %s", exc)
            return metrics_text(self.metrics)

    async def run(self) -> None:
        """Store the figures whenever they change, until canceled."""
        trouble = LogOnce(
            self.troubles,
            "This worker's metrics can't be collected; retrying",
            "This worker's metrics can be collected again.",
            catches=Exception,
        )
        while True:
            await asyncio.sleep(INTERVAL)
            with trouble:
                try:
                    await self.leave()
                except (LocalError, OSError):
                    logger.debug("The parent process didn't accept this worker's metrics", exc_info=True)

    async def leave(self) -> None:
        """Store the current figures with the parent."""
        data = dump(self.metrics)
        if data != self._left:
            await self.store.kv.put(_KEPT + self.store.workers.me, data, _TTL)
            self._left = data

    async def _sums(self) -> bytes:
        kv, workers = self.store.kv, self.store.workers
        keys = sorted(await kv.keys(_KEPT))
        alive: list[bytes] = []
        for key, data in zip(keys, await kv.get_many(keys), strict=True):
            if data is None:
                continue
            if await workers.alive(name := key.removeprefix(_KEPT)):
                alive.append(data)
            else:
                await self._fold(name, data)
        ended = await kv.get(_ENDED)
        return render_sums(alive, _decode(ended).readings if ended is not None else ())

    async def _fold(self, name: str, data: bytes) -> None:
        """Add the figures of an exited worker to the common record."""
        kv = self.store.kv
        for attempt in count():
            old = await read_again(kv, _ENDED, attempt)
            ended = EndedProcesses([], []) if old is None else _decode(old)
            if await kv.compare_and_set(_ENDED, old, _encode(ended.add(name, data)), _TTL):
                break
        await kv.delete(_KEPT + name)


class MetricsPart(OwnPart):
    """Opens the metrics registry for the parts after it and serves it as `/metrics`."""

    name: str = "metrics"

    async def open(self, host: PartHost) -> None:
        """Create the registry.

        Raises:
            LocalError: There are several workers, and their parent isn't responding.
        """
        health = host.store_health
        host.metrics = metrics = Metrics()
        metrics.read(
            "gauge",
            "millstream_backend_up",
            "The store responds.",
            lambda: {(health.kind,): int(health.up)},
            ("kind",),
            merge="min",
        )
        if not parent_address():

            async def render() -> bytes:
                return metrics_text(metrics)
        else:
            # Not the server's store, which several machines may share.
            store = open_store("memory://")
            await store.open()
            host.stack.push_async_callback(store.close)
            machine = MachineMetrics(metrics, store, host.store.troubles)
            host.stack.push_async_callback(machine.leave)
            host.run(machine.run())
            render = machine.render
        route = Route({"GET": metrics_handler(render, health.look)}, scope=WATCH, private=True, charged="")
        host.on_http(partial(host.routes.add, "/metrics", route))


_FRESH = b"cache-control: no-store\r\n"
_LATER = TEXT_HEAD + b"retry-after: 5\r\n"


_TROUBLES = "troubles"
"""Subject of the question for the troubles of a worker."""
_MANY_DEATHS = 3
"""Number of times that a worker dies in a row before it's a trouble."""
_LOOK = "Look for the reason in the server's log."


class ProbesPart(OwnPart):
    """Serves `/health`, `/livez`, and `/readyz`: the server's state for operators, orchestrators, and load balancers.

    They respond to any Host. Clients that may read the dashboard also get reasons and more figures. Others get the
    status, and how many workers and upstreams are healthy.
    """

    name: str = "probes"

    async def open(self, host: PartHost) -> None:
        """Add the paths of the health checks."""
        for path, handler in {"/health": self.health, "/livez": self.live, "/readyz": self.ready}.items():
            host.routes.add(path, Route({"GET": handler}, public=True, charged=""))
        self._host, self._answers, self._answered_at = host, Answers[list[Trouble]]([], 0), -FRESH_SECONDS
        health = host.store_health

        async def answer(_question: WorkerQuestion) -> bytes:
            return encode_answer(host.store.troubles.describe())

        host.queries.answer(_TROUBLES, answer)
        host.every_second(lambda _: host.background.spawn_once(health.look) if health.trouble.lasts else None)
        host.report("asking_tools", self._find_asking_tools)
        if host.metrics is not None:
            text = "What fails for reasons that aren't the callers'."
            host.metrics.read("gauge", "millstream_troubles", text, lambda: {(): len(host.store.troubles.describe())})

    async def live(self, request: HttpRequest) -> Response:
        """Respond while the event loop is running."""
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def ready(self, request: HttpRequest) -> Response:
        """Return whether to send new work here, which is False while the server drains.

        An unavailable store doesn't matter: plain calls don't need it, and an outage of a shared store would remove all
        workers at once. A degraded server is ready, and gives the reason.
        """
        if self._host.draining():
            return Response(b"draining\n", 503, _LATER)
        await self._ask_workers()
        reasons, text = self._reasons(), "ok"
        if reasons:
            text = f"degraded: {'; '.join(reasons)}" if await self._may_watch(request) else "degraded"
        return Response(f"{text}\n".encode(), 200, TEXT_HEAD)

    async def health(self, request: HttpRequest) -> Response:
        """Return the members of `/health`. Failures outside of the server don't cause a 503, because a restart wouldn't
        help."""
        host = self._host
        up = await host.store_health.look()
        await self._ask_workers()
        draining, reasons = host.draining(), self._reasons()
        facts: Json = {"status": "draining" if draining else "degraded" if reasons or not up else "ok"}
        if await self._may_watch(request):
            facts |= {"reasons": reasons} if reasons else {}
            facts |= self._figures()
        else:
            facts |= self._counts()
        fails = draining or host.degraded_reasons(any_kind=False)
        return Response(encode(facts), 503 if fails else 200, JSON_HEAD + _FRESH)

    def _find_asking_tools(self) -> list[str] | None:
        """Return the tools whose questions only this process can continue, or None if there are none."""
        host = self._host
        if host.services.peers.shared:
            return None
        tools, replay = host.registry.tools.values(), host.settings.replay
        return [
            each.name for each in tools if each.asks_inside and not (replay if each.replay is None else each.replay)
        ] or None

    async def _ask_workers(self) -> None:
        """Get what the other workers see, at most once a second, so that all workers respond alike."""
        gateway = self._host.gateway
        await asyncio.gather(self._ask_for_troubles(), *(() if gateway is None else (gateway.ask_workers(),)))

    async def _ask_for_troubles(self) -> None:
        if monotonic() - self._answered_at >= FRESH_SECONDS:
            self._answers = await self._host.queries.ask(WorkerQuestion(_TROUBLES), list[Trouble])
            self._answered_at = monotonic()

    def _troubles(self) -> list[Trouble]:
        workers: list[WorkerState] = self._host.reports.get("workers", list)() or []
        deaths = {each.worker: each.deaths for each in workers if each.deaths >= _MANY_DEATHS}
        why = "It exits when it starts, or soon after."
        loops = [Trouble(f"Worker {each} doesn't stay up", 0, count, why, _LOOK) for each, count in deaths.items()]
        found = merge_troubles([self._host.store.troubles.describe(), *self._answers.found[1:]])
        return [*loops, *join_store_troubles(found)]

    def _reasons(self) -> list[str]:
        return [*self._host.degraded_reasons(), *(each.what for each in self._troubles())]

    async def _may_watch(self, request: HttpRequest) -> bool:
        """Return whether a client may read the dashboard."""
        guard = self._host.guard
        if guard is None:
            return self._host.is_local(request.peer, request.headers, request.is_http_1_0)
        found = await guard(request)
        return isinstance(found, Principal) and found.has({WATCH})

    def _counts(self) -> dict[str, dict[str, int]]:
        """Return how many workers and upstreams there are, and how many are healthy."""
        read = self._host.reports
        workers: list[WorkerState] = read["workers"]() or []
        upstreams: dict[str, str] = (read["upstreams"]() or {}) if "upstreams" in read else {}
        states = {"workers": [each.state for each in workers], "upstreams": list(upstreams.values())}
        return {name: {"ready": found.count("ready"), "all": len(found)} for name, found in states.items() if found}

    def _figures(self) -> Json:
        host, definition = self._host, self.definition
        services, settings, sweep = host.services, host.settings, host.sweep
        return {
            "name": definition.name,
            "version": definition.version,
            "revisions": [revision.date for revision in ALL],
            "features": ["mcp", *sorted(definition.parts)],
            "uptime_seconds": round(sweep.clock() - sweep.started, 3),
            "troubles": self._troubles(),
            "streams": len(host.streams),
            "streams_by_transport": host.streams.by_transport(),
            "calls": len(host.dispatcher.calls),
            "pending_inputs": len(services.questions),
            "session_records": len(services.records.known),
            "store": {"kind": host.store_health.kind, "up": host.store_health.up},
            "event_loop_lag_ms": round(sweep.lag * 1000, 3),
            "memory_bytes": resident_bytes(),
            "limits": {
                "connections": settings.max_connections,
                "streams": settings.max_streams,
                "calls": settings.max_calls,
                "pending_inputs": settings.max_pending_inputs,
                **host.limits,
            },
            **{name: figure for name, read in host.reports.items() if (figure := read()) is not None},
        }
