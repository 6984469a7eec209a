"""OpenTelemetry spans. Import this module only if the program traces.

This is the only module that imports OpenTelemetry. It receives names and values, and doesn't know MCP methods.

The trace context in a message's `_meta` is W3C text (`traceparent`, `tracestate`) and becomes the parent. The
surrounding span or the HTTP headers are then linked. Without it, they are the parent. Invalid values are ignored.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int]

_propagator = TraceContextTextMapPropagator()


class OpenSpan(Struct):
    """A span that is current in its task until `Spans.end`."""

    span: Any
    """A `trace.Span`. Annotated as `Any`, because OpenTelemetry's types are unknown where it isn't installed."""
    token: Any
    trace_id: str
    span_id: str


class Spans(Struct, frozen=True):
    """Starts and ends spans of one server."""

    tracer: Any
    """A `trace.Tracer`."""

    def start(
        self, name: str, attributes: Attributes, *, meta: Mapping[str, object], headers: Mapping[str, object]
    ) -> OpenSpan:
        """Start a span of kind SERVER and make it current.

        Args:
            name: The operation and its target.
            attributes: Attributes known at the start.
            meta: The trace context of the message, unvalidated.
            headers: The trace context of the HTTP request.
        """
        ambient = trace.get_current_span().get_span_context()
        if not ambient.is_valid:
            ambient = _remote(headers)
        parent = _remote(meta)
        links = [trace.Link(ambient)] if parent.is_valid and ambient.is_valid else None
        around = parent if parent.is_valid else ambient
        span: trace.Span = self.tracer.start_span(
            name,
            trace.set_span_in_context(trace.NonRecordingSpan(around)) if around.is_valid else None,
            trace.SpanKind.SERVER,
            attributes,
            links,
        )
        own = span.get_span_context()
        return OpenSpan(
            span,
            context.attach(trace.set_span_in_context(span)),
            trace.format_trace_id(own.trace_id),
            trace.format_span_id(own.span_id),
        )

    def end(self, opened: OpenSpan, *, attributes: Attributes, failed: bool) -> None:
        """End a span in the task that started it and add attributes known only at the end."""
        context.detach(opened.token)
        span: trace.Span = opened.span
        span.set_attributes(attributes)
        if failed:
            span.set_status(trace.StatusCode.ERROR)
        span.end()


def open_spans(version: str) -> Spans | None:
    """Return the spans if the program has set a tracer provider, else None, because they would be discarded."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return Spans(trace.get_tracer("millstream", version))


def _remote(carrier: Mapping[str, object]) -> trace.SpanContext:
    texts = {key: value for key in _propagator.fields if isinstance(value := carrier.get(key), str)}
    if not texts:
        return trace.INVALID_SPAN_CONTEXT
    return trace.get_current_span(_propagator.extract(texts, context.Context())).get_span_context()
