from prometheus_client.parser import text_string_to_metric_families

from millstream._http.message import HttpRequest
from millstream._telemetry.metrics import Metrics, metrics_handler, render


async def test_metrics_have_the_prometheus_content_type() -> None:
    registry = Metrics()
    registry.read("gauge", "depth", "How deep.", lambda: {(): 2})
    request = HttpRequest(method="GET", path="/metrics", raw_headers=[], headers={})

    measured: list[str] = []

    async def measure() -> None:
        measured.append("measured")

    async def text() -> bytes:
        return render(registry)

    reply = await metrics_handler(text, measure)(request)
    assert reply.status == 200
    assert reply.head == b"content-type: text/plain; version=0.0.4; charset=utf-8\r\ncache-control: no-store\r\n"
    found = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    assert found["depth"].samples[0].value == 2
    assert measured
