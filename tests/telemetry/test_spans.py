import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cases import for_each
from millstream import Server, Settings
from millstream._telemetry.spans import Spans, open_spans
from millstream.testing import connect

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


class Recorder:
    """A tracer that records finished spans."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.spans = Spans(self.tracer)

    def one(self, *, meta: dict[str, object] | None = None, headers: dict[str, object] | None = None) -> ReadableSpan:
        """Run one span and return it."""
        self.exporter.clear()
        opened = self.spans.start("ping", {}, meta=meta or {}, headers=headers or {})
        self.spans.end(opened, attributes={}, failed=False)
        return self.exporter.get_finished_spans()[0]


def link_ids(span: ReadableSpan) -> list[str]:
    return [trace.format_trace_id(link.context.trace_id) for link in span.links]


def parent_of(span: ReadableSpan) -> tuple[str, str] | None:
    if span.parent is None:
        return None
    return trace.format_trace_id(span.parent.trace_id), trace.format_span_id(span.parent.span_id)


def test_spans_have_kind_name_and_attributes() -> None:
    recorder = Recorder()
    opened = recorder.spans.start("tools/call add", {"a": "b"}, meta={}, headers={})
    recorder.spans.end(opened, attributes={"c": 1}, failed=True)
    (span,) = recorder.exporter.get_finished_spans()
    assert (span.name, span.kind, dict(span.attributes or {})) == (
        "tools/call add", trace.SpanKind.SERVER, {"a": "b", "c": 1},
    )  # fmt: skip
    assert span.status.status_code is trace.StatusCode.ERROR
    assert opened.trace_id == trace.format_trace_id(span.context.trace_id)
    assert opened.span_id == trace.format_span_id(span.context.span_id)
    assert recorder.one().status.status_code is trace.StatusCode.UNSET


def test_spans_are_current_until_they_end() -> None:
    recorder = Recorder()
    before = trace.get_current_span()
    opened = recorder.spans.start("outer", {}, meta={}, headers={})
    with recorder.tracer.start_as_current_span("inner"):
        pass
    recorder.spans.end(opened, attributes={}, failed=False)
    assert trace.get_current_span() is before
    inner, outer = recorder.exporter.get_finished_spans()
    assert parent_of(inner) == parent_of(recorder.one()) or inner.parent == outer.context


def test_message_context_is_the_parent_and_http_span_a_link() -> None:
    """SEP-414."""
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("POST") as http:
        span = recorder.one(meta={"traceparent": PARENT, "tracestate": "a=1,b=2"}, headers={"traceparent": OTHER})
    assert parent_of(span) == (TRACE, SPAN)
    assert span.parent is not None
    assert span.parent.is_remote
    assert dict(span.parent.trace_state) == {"a": "1", "b": "2"}
    assert link_ids(span) == [trace.format_trace_id(http.get_span_context().trace_id)]


def test_http_span_is_the_parent_without_message_context() -> None:
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("POST") as http:
        span = recorder.one()
    assert span.parent == http.get_span_context()
    assert link_ids(span) == []


def test_http_headers_are_the_fallback_context() -> None:
    recorder = Recorder()
    assert parent_of(recorder.one(headers={"traceparent": PARENT})) == (TRACE, SPAN)
    assert link_ids(recorder.one(meta={"traceparent": PARENT}, headers={"traceparent": OTHER})) == ["1" * 32]


@for_each(
    "value",
    [
        "", "x", None, 7, ["00"], {"a": 1}, PARENT.upper(), PARENT[:-1], f"{PARENT}-x", f"ff{PARENT[2:]}",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"{PARENT}\r\nx: y", PARENT * 100, "\ud800", "00-é",
    ],
)  # fmt: skip
def test_invalid_traceparents_are_ignored(value: object) -> None:
    """SEP-414 and W3C Trace Context §3.2: start a new trace."""
    assert Recorder().one(meta={"traceparent": value, "tracestate": "a=1"}).parent is None


@given(st.text(), st.text())
def test_malformed_trace_contexts_never_raise(parent: str, state: str) -> None:
    recorder = Recorder()
    recorder.one(meta={"traceparent": parent, "tracestate": state})
    assert parent_of(recorder.one(meta={"traceparent": PARENT, "tracestate": state})) == (TRACE, SPAN)


def test_no_spans_without_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_spans("1") is None
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    assert isinstance(open_spans("1"), Spans)


async def test_traces_need_neither_the_access_log_nor_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: recorder.provider)
    monkeypatch.setattr(trace, "get_tracer", recorder.provider.get_tracer)
    server = Server("shop", settings=Settings(access_log=False))
    server.tool(lambda: "Emma", name="search")
    async with connect(server) as client:
        await client.call("search")
    assert "tools/call search" in {span.name for span in recorder.exporter.get_finished_spans()}
