"""`GET /metrics` as a Prometheus server asks for it."""

from prometheus_client.parser import text_string_to_metric_families

from millstream.http import Request, Sink
from millstream.telemetry.metrics import Registry
from millstream.transports.metrics_http import MetricsHttp


def no_stream(status: int, head: bytes) -> Sink:
    raise AssertionError("metrics are one plain reply")


async def test_metrics_are_text_of_the_version_that_prometheus_names() -> None:
    """Prometheus: the content type says how to read it; a cache would show the past."""
    registry = Registry()
    registry.gauge("depth", "How deep.").set(2)
    request = Request(method="GET", path="/metrics", raw_headers=[], headers={}, open=no_stream)
    reply = await MetricsHttp(registry).get(request)
    assert reply.status == 200
    assert reply.head == b"content-type: text/plain; version=0.0.4; charset=utf-8\r\ncache-control: no-store\r\n"
    (family,) = text_string_to_metric_families(reply.body.decode())
    assert family.samples[0].value == 2
