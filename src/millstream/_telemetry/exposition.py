"""`GET /metrics`: the metrics of one process or the sums of several, in the format of prometheus_client."""

import operator
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from millstream._http.message import HttpRequest, Response
from millstream._telemetry.metrics import Merge, Metrics, Reading

_HEAD = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\ncache-control: no-store\r\n"
_CUMULATIVE_KINDS = ("counter", "histogram")
_MAX_NAMES = 1_000
"""Maximum number of names of ended processes to remember."""
_MERGES: Final[dict[Merge, Callable[[float, float], float]]] = {"sum": operator.add, "max": max, "min": min}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Reading]).decode


if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric


class MetricsEndpoint:
    """The handler of the metrics path.

    Args:
        render: Returns the text.
        measure: Awaited first, to update figures that need I/O.
    """

    def __init__(self, render: Callable[[], Awaitable[bytes]], measure: Callable[[], Awaitable[object]]) -> None:
        self._render = render
        self._measure = measure

    async def get(self, request: HttpRequest) -> Response:
        """Return all metrics."""
        await self._measure()
        return Response(await self._render(), 200, _HEAD)


class EndedProcesses(Struct, array_like=True):
    """The counts of processes that have ended, so sums never decrease."""

    names: list[str]
    """The newest names, so no process is added twice."""
    readings: list[Reading]

    def add(self, name: str, data: bytes) -> "EndedProcesses":
        """Return the counts with those of another process added."""
        if name in self.names:
            return self
        lasting = [each for each in _decode(data) if each.kind in _CUMULATIVE_KINDS]
        return EndedProcesses([*self.names, name][-_MAX_NAMES:], _add_up([self.readings, lasting]))


def dump(metrics: Metrics) -> bytes:
    """Return the metrics of this process, encoded for another process."""
    return _encode(_readings(metrics))


def render(metrics: Metrics) -> bytes:
    """Return the metrics of this process as text."""
    return _text(_readings(metrics))


def render_sums(processes: Iterable[bytes], ended: Sequence[Reading] = ()) -> bytes:
    """Return the sums of several processes' metrics as text."""
    return _text(_add_up([ended, *map(_decode, processes)]))


def process_values() -> dict[str, float]:
    """Return the figures of this process under their Prometheus names. Figures that the system lacks are omitted."""
    return {sample.name: sample.value for metric in _process().collect() for sample in metric.samples}


@cache
def _process() -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector  # noqa: PLC0415  for a quick start

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _readings(metrics: Metrics) -> list[Reading]:
    """Return our metrics, and those of the process."""
    found = metrics.readings()
    for metric in _process().collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        samples = {
            (sample.name, *(each for pair in sample.labels.items() for each in pair)): float(sample.value)
            for sample in metric.samples
        }
        merge: Merge = "min" if name == "process_start_time_seconds" else "sum"
        found.append(Reading(name, metric.documentation, metric.type, merge, samples))
    return found


def _add_up(several: Iterable[Sequence[Reading]]) -> list[Reading]:
    """Merge metrics of the same name. If their kinds differ, as with another version, the first one's is used."""
    found: dict[str, Reading] = {}
    for readings in several:
        for each in readings:
            first = found.get(each.name)
            if first is None:
                found[each.name] = msgspec.structs.replace(each, samples=dict(each.samples))
            elif (first.kind, first.merge) == (each.kind, each.merge):
                merge, samples = _MERGES[each.merge], first.samples
                for key, value in each.samples.items():
                    samples[key] = merge(samples[key], value) if key in samples else value
    return list(found.values())


class _Readings:
    """The readings in the form of a collector."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = readings

    def collect(self) -> "Iterable[Metric]":
        """Yield each as a metric."""
        from prometheus_client import Metric  # noqa: PLC0415  as above

        for each in self._readings:
            if each.samples:
                metric = Metric(each.name.removesuffix("_total"), each.help, each.kind)
                for name, *labels in each.samples:
                    pairs = dict(zip(labels[::2], labels[1::2], strict=True))
                    metric.add_sample(name, pairs, each.samples[name, *labels])
                yield metric


def _text(readings: Iterable[Reading]) -> bytes:
    from prometheus_client import generate_latest  # noqa: PLC0415  as above

    collector: Any = _Readings(readings)  # it has the one method that is called
    return generate_latest(collector)
