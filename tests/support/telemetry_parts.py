"""Example calls and a span recorder for the telemetry tests."""

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millstream._protocol.metadata import ClientInfo
from millstream._protocol.revisions import NEWEST
from millstream._server.calls.call import Call, CallFailure
from millstream._server.observability.observer import Tracer
from millstream._telemetry.metrics import Metrics, render
from millstream._telemetry.spans import Spans

__all__ = ["Metrics", "render"]

TRACEPARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def make_call(**given: Any) -> Call:
    """Return a call with the given fields. `outcome` and `incident` describe its failure."""
    outcome, incident = given.pop("outcome", ""), given.pop("incident", "")
    if outcome:
        given["failure"] = CallFailure(outcome, None, incident)
    client = ClientInfo({}, "inspector", "1.2")
    return Call(**{"revision": NEWEST, "id": 1, "method": "ping", "client": client, "transport": "http", **given})


def make_tracer() -> tuple[Tracer, InMemorySpanExporter]:
    """Return a tracer and the exporter that records its finished spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(Spans(provider.get_tracer("test"))), exporter
