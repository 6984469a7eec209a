"""Spans of calls, with names and attributes by the OpenTelemetry conventions for MCP.

A span lasts as long as the dispatcher works on its call and is the current span, so spans created by a tool become
children. Arguments and results aren't recorded. `telemetry.spans` is loaded only if the program has imported
OpenTelemetry or names a provider in the environment.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from millstream._protocol.json_schema import members
from millstream._server.calls.call import Call, params_of, value_of
from millstream._telemetry.logs import redact_text
from millstream._telemetry.messages import session_hash

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


class Tracer:
    """The open spans of calls in flight."""

    def __init__(self, spans: "Spans") -> None:
        self._spans = spans
        self._open: dict[Call, OpenSpan] = {}

    def begin(self, call: Call) -> None:
        """Start the span of a call, in the task that runs it."""
        params = params_of(call)
        meta, uri, target_name = value_of(params.meta), value_of(params.uri), value_of(params.name)
        attributes: dict[str, str | int] = {
            "mcp.method.name": _short(call.method),
            "mcp.protocol.version": call.revision.date,
            "jsonrpc.request.id": _short(str(call.id)),
        }
        if call.headers is None:
            attributes["network.transport"] = "pipe"
        else:
            attributes["network.transport"] = "tcp"
            attributes["network.protocol.name"] = "http"
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
        self._open[call] = self._spans.start(
            f"{_short(call.method)} {_short(name)}" if target is not None and name else _short(call.method),
            attributes,
            meta=members(meta),
            headers=_trace_headers(call.headers),
        )

    def end(self, call: Call, outcome: str) -> tuple[str, str]:
        """End the span of a call, in the same task. Return trace and span id, empty without a span."""
        opened = self._open.pop(call, None)
        if opened is None:
            return "", ""
        attributes: dict[str, str | int] = {}
        if outcome:
            attributes["error.type"] = outcome
            if outcome.lstrip("-").isdigit():
                attributes["rpc.response.status_code"] = outcome
        self._spans.end(opened, attributes=attributes, failed=bool(outcome))
        return opened.trace_id, opened.span_id


def _trace_headers(headers: Mapping[bytes, bytes] | None) -> dict[str, str]:
    if headers is None:
        return {}
    return {name.decode(): headers[name].decode("latin-1") for name in _HEADERS if name in headers}


def _short(text: str) -> str:
    return redact_text(text[:_MAX_TEXT])
