"""Observation of calls: metrics by the OpenTelemetry conventions for MCP, a line in the access log, and a span.

An `Observer` exists only if one of these is enabled. The dispatcher calls it after each call (`observe`), and before it
(`begin`) if spans are enabled. Labels are bounded: methods of the specification, registered tools, and ``_other``.
Messages that aren't calls (`initialize`, notifications, rejected messages) arrive through `message`.

A span lasts as long as the dispatcher works on its call and is the current span, so spans created by a tool become
children. Arguments and results aren't recorded. `telemetry.spans` is loaded only if the program has imported
OpenTelemetry or names a provider in the environment.
"""

import importlib
import os
import socket
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from millstream._protocol.admission import Handshake
from millstream._protocol.json_schema import members
from millstream._protocol.principal import Principal
from millstream._protocol.redaction import redact_foreign
from millstream._protocol.revisions import ALL, BY_DATE
from millstream._recent import Recent
from millstream._server.calls.call import Call, params_of, value_of
from millstream._server.calls.services import SESSION_OVER
from millstream._server.calls.sessions import Session
from millstream._server.observability import Figures, add_up
from millstream._telemetry.messages import (
    MAX_CACHED,
    MAX_KIND,
    SERVER_FAILURES,
    AccessRecord,
    Frame,
    MessageLog,
    session_hash,
)
from millstream._telemetry.metrics import DURATIONS, FINE, OTHER, Counter, Histogram, Labels, Metrics, Series
from millstream._telemetry.process import ActiveSessions, LoopLag, PerSecond, process_figures, tasks

if TYPE_CHECKING:
    from millstream._telemetry.spans import OpenSpan, Spans


_PROVIDER_VARIABLE = "OTEL_PYTHON_TRACER_PROVIDER"
_MAX_TEXT = 1024
_TARGETS = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
"""Method -> the attribute for its target, which is also part of the span's name."""
_HEADERS = (b"traceparent", b"tracestate")


def load_spans(version: str) -> "Spans | None":
    """Return the spans of this program, or None without tracing. Call it after the user's setup has run."""
    if "opentelemetry.trace" not in sys.modules and _PROVIDER_VARIABLE not in os.environ:
        return None
    try:
        module = importlib.import_module("millstream._telemetry.spans")
    except ImportError:
        return None
    spans: Spans | None = module.open_spans(version)
    return spans


class Tracer(Struct, frozen=True, eq=False):
    """The open spans of calls in flight."""

    spans: "Spans"
    _open: "dict[Call, OpenSpan]" = {}

    def begin(self, call: Call) -> None:
        """Start the span of a call, in the task that runs it."""
        params = params_of(call)
        meta, uri, target_name = value_of(params.meta), value_of(params.uri), value_of(params.name)
        attributes: dict[str, str | int] = {
            "mcp.method.name": _short(call.method),
            "mcp.protocol.version": call.revision.date,
            "jsonrpc.request.id": _short(str(call.id)),
        }
        http = {"network.transport": "tcp", "network.protocol.name": "http"}
        attributes |= {"network.transport": "pipe"} if call.headers is None else http
        if call.session is not None:
            attributes["mcp.session.id"] = session_hash(call.session.id)
        if isinstance(uri, str):
            attributes["mcp.resource.uri"] = _short(uri)
        name = call.name or (target_name if isinstance(target_name, str) else "")
        target = _TARGETS.get(call.method)
        if target is not None and name:
            attributes[target] = _short(name)
        if call.method == "tools/call":
            attributes["gen_ai.operation.name"] = "execute_tool"
        opened = self._open[call] = self.spans.start(
            f"{_short(call.method)} {_short(name)}" if target is not None and name else _short(call.method),
            attributes,
            meta=members(meta),
            headers={name.decode(): call.headers[name].decode("latin-1") for name in _HEADERS if name in call.headers}
            if call.headers
            else {},
        )
        call.trace = opened.trace_id

    def end(self, call: Call, outcome: str, name: str = "") -> tuple[str, str]:
        """End the span of a call, in the same task. Return trace and span id, empty without a span."""
        opened = self._open.pop(call, None)
        if opened is None:
            return "", ""
        attributes: dict[str, str | int] = {}
        target = _TARGETS.get(call.method)
        if target is not None and name:  # middleware, or `call_tool`, can name another item
            attributes[target] = _short(name)
            opened.span.update_name(f"{_short(call.method)} {_short(name)}")
        if outcome:
            attributes["error.type"] = outcome
            if outcome.lstrip("-").isdigit():
                attributes["rpc.response.status_code"] = outcome
        self.spans.end(opened, attributes=attributes, failed=bool(outcome))
        return opened.trace_id, opened.span_id


def _short(text: str) -> str:
    return redact_foreign(text[:_MAX_TEXT])


_METHODS = frozenset(
    (
        "response",
        "hub/publish",
        "hub/subscribe",
        "hub/unsubscribe",
        "hub/members",
        *(method for revision in ALL for method in (*revision.requests, *revision.notifications)),
    )
)
"""Methods with their own label. ``response`` is a client's answer to a question."""
LISTEN = "subscriptions/listen"
"""The method that isn't treated as a call, because its duration depends on the client."""


class Observer:
    """The metrics, access log, and spans of one server."""

    def __init__(
        self,
        tools: Container[str],
        *,
        connections: Mapping[Labels, float] = {},
        log: MessageLog | None = None,
        tracing: Tracer | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Create the observer.

        Args:
            tools: A live view of registered tool names.
            connections: A live view of open connections and streams, by transport and revision.
            log: The access log, or None.
            tracing: The spans, or None.
            metrics: The registry, or None for metrics that aren't exported.
            clock: Monotonic seconds.
            wall: Seconds since 1970.
        """
        registry = Metrics() if metrics is None else metrics
        self.registry: Metrics = registry
        """The metrics."""
        self._connections = connections
        self.tools: Container[str] = tools
        self._log = log
        self._tracing = tracing
        self._clock = clock
        self._wall = wall
        self.begin: Callable[[Call], None] | None = None if tracing is None else tracing.begin
        """Called before each call, in its task. None without spans."""
        self._started = clock()
        self._since = wall()
        self._kinds: Recent[Labels, tuple[Series, Frame | None]] = Recent(MAX_CACHED)
        """(method, name, outcome, revision) and other log fields -> their series, and the constant part of their log
        lines.
        """
        self._ahead = 0.0
        """Difference between wall time and the monotonic clock, updated once per second."""
        self._per_second = PerSecond()
        self.durations: Histogram = registry.histogram(
            "mcp_server_operation_duration_seconds",
            "Duration of requests and notifications, measured by the server.",
            ("mcp_method_name", "gen_ai_tool_name", "error_type", "mcp_protocol_version"),
            bounds=DURATIONS,
            finer=FINE,
        )
        """Durations of calls and subscriptions, by method, tool, outcome, and revision."""
        self._messages: Counter = registry.counter(
            "mcp_server_messages_total",
            "Messages that aren't calls: handshakes, notifications, answers, and rejected messages.",
            ("mcp_method_name", "error_type", "mcp_protocol_version"),
        )
        self._session_durations: Histogram = registry.histogram(
            "mcp_server_session_duration_seconds",
            "Time from the first to the last message of ended sessions.",
            ("transport", "mcp_protocol_version"),
        )
        self._sessions = ActiveSessions(lambda labels, seconds: self._session_durations.observe(seconds, labels))
        registry.read(
            "gauge",
            "mcp_server_sessions_active",
            "Sessions with a message in the last five minutes.",
            lambda: self._sessions.count(clock()),
            ("transport", "mcp_protocol_version"),
        )
        by, about = ("transport", "mcp_protocol_version"), "Open connections and event streams."
        registry.read("gauge", "mcp_server_connections_active", about, lambda: connections, by)
        if log is not None:
            registry.read(
                "counter",
                "millstream_log_lines_lost_total",
                "Log lines that couldn't be written.",
                lambda: {(): log.lost},
            )
        registry.read("gauge", "millstream_event_loop_tasks", "Tasks in the event loop.", lambda: {(): tasks()})
        self.lag: LoopLag = LoopLag(registry)
        """The lag of the event loop. The runtime runs its measurement."""

    def close(self) -> None:
        """Flush the access log."""
        if self._log is not None:
            self._log.flush(last=True)

    def __call__(self, call: Call, seconds: float, answer: bytes) -> None:
        """Record a finished call (`Dispatcher.observe`)."""
        # Runs for every observed call, so nested functions are inlined.
        method, log, session, failure, tool = call.method, self._log, call.session, call.failure, call.tool
        target = call.item or (tool is not None and tool.main_name) or call.name
        outcome = "" if failure is None else failure.outcome
        listened = method == LISTEN
        if call.cancelled and not outcome and not listened:
            outcome = "cancelled"
        if log is None:
            key: Labels = (method, target if method == "tools/call" else "", outcome, call.revision.date)
        else:
            client, principal = call.client, call.principal
            key = (
                method,
                target,
                outcome,
                call.revision.date,
                client.name,
                client.version,
                "" if session is None else session.id,
                "" if principal is None else principal.id,
                call.transport,
                "" if call.dispatcher is None else call.dispatcher.address.name,
            )
        kind = self._kinds.get(key)
        series, frame = self._kind(key) if kind is None else kind
        series.counts[bisect_left(series.bounds, seconds)] += 1
        series.total += seconds
        now, per_second = self._clock(), self._per_second
        if now >= per_second.until:
            per_second.turn(int(now))
            self._ahead = self._wall() - now
        if not listened:
            per_second.count += 1
        if session is not None:
            self._sessions.note(session.id, now, call.transport, key[3])
        if self._tracing is not None:
            trace = self._tracing.end(call, outcome, target)
            if log is not None:
                log.add(_record(key, self._wall(), seconds, len(answer), trace))
        elif log is not None and frame is not None:
            log.write(frame, now + self._ahead, seconds, len(answer))

    def message(self, message: AccessRecord) -> None:
        """Record a message that isn't a call. It's counted without a duration."""
        method, _, status, revision = self._clean((message.method, "", message.status, message.revision))
        self._messages.add((method, status, revision))
        now = self._clock()
        if message.session:
            self._sessions.note(message.session, now, message.transport, message.revision)
        if self._log is not None:
            self._log.add(message)

    def note(
        self,
        method: str,
        transport: str,
        session: Session | None = None,
        status: str = "",
        *,
        target: str = "",
        principal: Principal | None = None,
        address: str = "",
        opening: Handshake | None = None,
    ) -> None:
        """Record a message that isn't a call, or the end of a session. See `ObserveMessage`."""
        if method == SESSION_OVER:
            if session is not None:
                self._sessions.over(session.id)
            return
        # Neither has been validated yet, and log lines are held until their batch is written.
        method, target = method[:_MAX_TEXT] or OTHER, target[:_MAX_TEXT]
        message = AccessRecord(self._wall(), method, target, status, transport=transport)
        about = session or opening
        if about is not None:
            message.client, message.client_version = about.client.name, about.client.version
            message.revision = about.revision.date
        if session is not None:
            message.session = session.id
        if principal is not None:
            message.principal = principal.id
        self.message(message)

    def sessions(self) -> int:
        """Return the number of sessions active in the last five minutes."""
        return sum(self._sessions.count(self._clock()).values())

    def _clean(self, labels: Labels) -> Labels:
        """Return labels, each with a bounded number of values."""
        method, tool, outcome, revision = labels
        return (
            method if method in _METHODS else OTHER,
            tool if method != "tools/call" or tool in self.tools else OTHER,
            outcome,
            revision if not revision or revision in BY_DATE else OTHER,
        )

    def _kind(self, key: Labels) -> tuple[Series, Frame | None]:
        """Return the data that calls of one kind share. It's cached if the number of kinds is bounded."""
        method, name, outcome, revision = key[:4]
        labels = method, name if method == "tools/call" else "", outcome, revision
        log = self._log
        series = self.durations.of(self._clean(labels))
        frame = None if log is None or self._tracing is not None else log.frame(_record(key))
        if labels in self.durations.series and sum(map(len, key)) <= MAX_KIND:
            self._kinds.keep(key, (series, frame))
        return series, frame

    # For the dashboard

    def calls(self) -> dict[Labels, Series]:
        """Return the durations of calls without subscriptions, whose duration depends on the client."""
        return {labels: series for labels, series in self.durations.series.items() if labels[0] != LISTEN}

    def figures(self, name: str, *, hub: dict[str, Any] | None = None) -> Figures:
        """Return the measurements so far.

        Args:
            name: Name of this worker.
            hub: Figures of the hub, passed through.
        """
        now = self._clock()
        self._ahead = self._wall() - now  # `last`, below, may begin the second that would update it
        operations: dict[tuple[str, str], dict[str, int]] = {}
        for (method, tool, outcome, _), series in self.calls().items():
            calls = sum(series.counts)
            errors = {"errors": calls if outcome else 0, "server_errors": calls if outcome in SERVER_FAILURES else 0}
            operations[method, tool] = add_up(operations.get((method, tool)), {"calls": calls, **errors})
        return Figures(
            name,
            os.getpid(),
            socket.gethostname(),
            self._since,
            now - self._started,
            operations,
            self._per_second.last(int(now)),
            self._sessions.count(now),
            {labels: int(count) for labels, count in self._connections.items()},
            round(self.lag.last * 1000, 3),
            process_figures(),
            hub,
            round(self.lag.blocked * 1000, 3),
        )


def _record(
    key: Labels, at: float = 0.0, seconds: float = 0.0, size: int = 0, trace: tuple[str, str] = ("", "")
) -> AccessRecord:
    """Return the access log line for a call of this kind."""
    method, name, outcome, revision, client, version, session, principal, transport, address = key
    return AccessRecord(
        at,
        method,
        name,
        outcome,
        seconds,
        revision,
        client,
        version,
        session,
        principal,
        size,
        transport,
        *trace,
        address,
    )
