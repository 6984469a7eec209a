import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from cases import for_each
from millstream._protocol.revisions import FIRST, NEWEST
from millstream._server.calls.sessions import Session
from millstream._server.observability.observer import load_spans
from millstream._telemetry.messages import session_hash
from millstream._telemetry.spans import Spans
from patience import WAIT
from telemetry_parts import TRACEPARENT, make_call, make_tracer


def attributes_of(outcome: str = "", **given: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and attributes of a call's span."""
    tracing, exporter = make_tracer()
    call = make_call(**given)
    tracing.begin(call)
    tracing.end(call, outcome)
    (span,) = exporter.get_finished_spans()
    return span.name, dict(span.attributes or {})


def test_tool_call_spans_follow_the_conventions() -> None:
    name, attributes = attributes_of(
        method="tools/call", name="add", id=7, headers={}, params=b'{"name":"add","arguments":{"password":"x"}}'
    )
    assert name == "tools/call add"
    assert attributes == {
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": NEWEST.date,
        "gen_ai.tool.name": "add",
        "gen_ai.operation.name": "execute_tool",
        "jsonrpc.request.id": "7",
        "network.transport": "tcp",
        "network.protocol.name": "http",
    }


def test_span_names_are_known_before_decoding() -> None:
    name, attributes = attributes_of(method="prompts/get", revision=FIRST, params=b'{"name":"review"}')
    assert name == "prompts/get review"
    assert attributes["gen_ai.prompt.name"] == "review"
    assert attributes["network.transport"] == "pipe"
    assert "network.protocol.name" not in attributes


def test_resource_uris_are_attributes_and_not_names() -> None:
    name, attributes = attributes_of(method="resources/read", params=b'{"uri":"book://1?token=abcdefgh"}')
    assert name == "resources/read"
    assert attributes["mcp.resource.uri"] == "book://1?token=***"


def test_sessions_are_identified_by_hash() -> None:
    call = make_call()
    _, attributes = attributes_of(session=Session("abc", FIRST, call.client))
    assert attributes["mcp.session.id"] == session_hash("abc")


@for_each(
    ("outcome", "told"),
    [
        ("", {}),
        ("tool_error", {"error.type": "tool_error"}),
        ("cancelled", {"error.type": "cancelled"}),
        ("-32602", {"error.type": "-32602", "rpc.response.status_code": "-32602"}),
    ],
)
def test_failures_have_a_code_or_kind(outcome: str, told: dict[str, str]) -> None:
    """Conventions: `error.type` is the JSON-RPC code or `tool_error`."""
    _, attributes = attributes_of(outcome)
    assert {key: value for key, value in attributes.items() if key.startswith(("error", "rpc"))} == told


@for_each(
    "params", [b"", b"[]", b"1", b"{", b'{"_meta":[],"name":3,"uri":{}}', b'{"_meta":{"traceparent":[]}}', b"[" * 9999]
)
def test_params_of_any_shape_produce_a_span(params: bytes) -> None:
    name, _ = attributes_of(method="tools/call", params=params)
    assert name == "tools/call"


def test_trace_context_is_read_from_meta_and_from_headers() -> None:
    """SEP-414."""
    for given in (
        {"params": b'{"_meta":{"traceparent":"%b"}}' % TRACEPARENT},
        {"headers": {b"traceparent": TRACEPARENT}},
        {"tool": object(), "body": b'{"params":{"_meta":{"traceparent":"%b"}}}' % TRACEPARENT},
    ):
        tracing, exporter = make_tracer()
        call = make_call(**given)
        tracing.begin(call)
        ids = tracing.end(call, "")
        (span,) = exporter.get_finished_spans()
        assert ids == (trace.format_trace_id(span.context.trace_id), trace.format_span_id(span.context.span_id))
        assert ids[0] == TRACEPARENT.split(b"-")[1].decode()


def test_calls_that_never_began_have_no_span() -> None:
    tracing, exporter = make_tracer()
    assert tracing.end(make_call(), "") == ("", "")
    assert exporter.get_finished_spans() == ()


def test_tracing_is_imported_only_with_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_spans("1") is None
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    assert isinstance(load_spans("1"), Spans)


def test_no_spans_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider")
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.delitem(sys.modules, "millstream._telemetry.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert load_spans("1") is None


@pytest.mark.server
def test_programs_without_tracing_import_no_opentelemetry() -> None:
    program = (
        "import sys\nfrom millstream._server.observability.observer import Tracer, load_spans\n"
        "import millstream._server.observability.observer\n"
        "assert load_spans('1') is None\nassert not [n for n in sys.modules if n.startswith('opentelemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr.decode()
