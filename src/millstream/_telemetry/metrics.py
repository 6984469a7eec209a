"""Counters, gauges, and histograms of the hot path, and `GET /metrics`, in the format of prometheus_client.

The metrics are those of one process, or the sums of several. A series is identified by its label values, in the order
of the metric's labels. Each metric has a maximum number of series, because peers choose some values. Further series are
counted together under ``_other``. Not thread-safe.
"""

import operator
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from math import ceil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge"]
Merge = Literal["sum", "max", "min"]
"""How values of several processes are merged."""
Read = Callable[[], Mapping[Labels, float]]
"""Returns the values of a metric for export."""

OTHER = "_other"
MAX_SERIES = 1000

DURATIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bounds in seconds, from the OpenTelemetry conventions for MCP."""
FINE = tuple(
    float(f"{digit}e{power}") for power in range(-5, 2) for digit in ("1", "1.5", "2", "3", "4", "5", "6", "8")
)
"""Finer bounds for quantiles, because nearly all calls finish before the first of `DURATIONS`."""
SHARES = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))


class Reading(Struct, array_like=True):
    """A metric at one moment, in the form that processes exchange."""

    name: str
    help: str
    kind: str
    merge: Merge
    samples: dict[tuple[str, ...], float]
    """Sample name, labels, and label values -> value."""


class Counter:
    """A counter."""

    def __init__(self, labels: Labels) -> None:
        self.values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        """Add an `amount` of at least 0 to one series."""
        labels = _admit(labels, self.values)
        self.values[labels] = self.values.get(labels, 0) + amount


class Series:
    """One series of a histogram. Cache it for recurring labels, so a value costs one `observe`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: Sequence[float] = bounds
        self.counts: list[int] = [0] * (len(bounds) + 1)
        """Number of values up to each bound and above the previous one. The last count is for values above all
        bounds."""
        self.total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histogram:
    """A histogram."""

    def __init__(self, labels: Labels, bounds: Sequence[float], finer: Sequence[float] = ()) -> None:
        self._labels = labels
        self.bounds: tuple[float, ...] = tuple(sorted({*bounds, *finer}))
        """All bounds. The export leaves out the finer ones."""
        self.series: dict[Labels, Series] = {} if labels else {(): Series(self.bounds)}
        self._exposed_bounds = tuple((self.bounds.index(bound) + 1, repr(bound)) for bound in sorted(bounds))

    def of(self, labels: Labels = ()) -> Series:
        """Return the series of these label values. Create it if it's new."""
        labels = _admit(labels, self.series)
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = Series(self.bounds)
        return series

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one value in one series."""
        self.of(labels).observe(value)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the cumulative buckets, sum, and count of each series."""
        samples: dict[tuple[str, ...], float] = {}
        for values, series in self.series.items():
            labels = _pairs(self._labels, values)
            start = below = 0
            for end, bound in self._exposed_bounds:
                below += sum(series.counts[start:end])
                start = end
                samples[(f"{name}_bucket", *labels, "le", bound)] = below
            below += sum(series.counts[start:])
            samples[(f"{name}_bucket", *labels, "le", "+Inf")] = below
            samples[(f"{name}_sum", *labels)] = series.total
            samples[(f"{name}_count", *labels)] = below
        return samples


def _admit(labels: Labels, series: Collection[Labels]) -> Labels:
    """Return the series for label values: the values, or ``_other`` if they're new and there are already too many
    series.
    """
    return labels if labels in series or len(series) < MAX_SERIES else (OTHER,) * len(labels)


class Metrics:
    """The metrics of one running server, in the order of their creation."""

    def __init__(self) -> None:
        self._metrics: dict[str, Callable[[], Reading]] = {}

    def counter(self, name: str, help: str, labels: Labels = ()) -> Counter:
        """Create a counter. Its name must end in ``_total``.

        Raises:
            ValueError: The name is taken. The other methods raise the same.
        """
        counter = Counter(labels)
        self.read("counter", name, help, lambda: counter.values, labels)
        return counter

    def histogram(
        self,
        name: str,
        help: str,
        labels: Labels = (),
        *,
        bounds: Sequence[float] = DURATIONS,
        finer: Sequence[float] = (),
    ) -> Histogram:
        """Create a histogram. The exposition omits `finer` bounds, which only serve `quantile`."""
        histogram = Histogram(labels, bounds, finer)
        self._add(name, lambda: Reading(name, help, "histogram", "sum", histogram.samples(name)))
        return histogram

    def read(self, kind: Kind, name: str, help: str, read: Read, labels: Labels = (), *, merge: Merge = "sum") -> None:
        """Create a counter or gauge whose values `read` returns for each exposition."""
        self._add(
            name,
            lambda: Reading(
                name, help, kind, merge, {(name, *_pairs(labels, values)): value for values, value in read().items()}
            ),
        )

    def readings(self) -> list[Reading]:
        """Return all metrics at this moment."""
        return [read() for read in self._metrics.values()]

    def _add(self, name: str, read: Callable[[], Reading]) -> None:
        if name in self._metrics:
            raise ValueError(f"A metric named {name} already exists.")
        self._metrics[name] = read


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """Return the quantile `q` from the counts between bounds, or None if all counts are 0.

    Values in a bucket are assumed to be spread evenly on a logarithmic scale, and those in the first bucket evenly
    from 0. Values above all bounds are treated as the last bound.
    """
    number = sum(counts)
    if number == 0:
        return None
    rank, below = q * number, 0
    for place, bound in enumerate(bounds):
        count = counts[place]
        if count and below + count >= rank:
            share = (rank - below) / count
            lower = bounds[place - 1] if place else 0.0
            return lower * (bound / lower) ** share if lower else bound * share
        below += count
    return bounds[-1]


def percentiles(bounds: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    """Return the percentiles for `SHARES` in milliseconds, from durations in seconds.

    Each is the nearest-rank value, so it's the duration of an actual call.
    """
    number = sum(counts) or 1
    found = {name: quantile(bounds, counts, (ceil(share * number) - 0.5) / number) for name, share in SHARES}
    return {name: None if value is None else round(value * 1000, 3) for name, value in found.items()}


def _pairs(names: Labels, values: Labels) -> tuple[str, ...]:
    """Return each label followed by its value. Labels with an empty value are omitted, because Prometheus treats them
    alike."""
    return tuple(each for name, value in zip(names, values, strict=True) if value for each in (name, _utf8(value)))


def _utf8(value: str) -> str:
    """Replace lone surrogates, which UTF-8 can't encode."""
    return value if value.isascii() else value.encode(errors="replace").decode()


_HEAD = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\ncache-control: no-store\r\n"
_CUMULATIVE_KINDS = ("counter", "histogram")
_MAX_NAMES = 1_000
"""Maximum number of ended processes whose names are remembered."""
_MERGES: Final[dict[Merge, Callable[[float, float], float]]] = {"sum": operator.add, "max": max, "min": min}

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Reading]).decode


if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


def metrics_handler(render: Callable[[], Awaitable[bytes]], measure: Callable[[], Awaitable[object]]) -> Handler:
    """Return the handler of the metrics path.

    Args:
        render: Returns the text.
        measure: Awaited first, to update figures that need I/O.
    """

    async def get(request: HttpRequest) -> Response:
        await measure()
        return Response(await render(), 200, _HEAD)

    return get


class EndedProcesses(Struct, array_like=True):
    """The counts of processes that have ended, so sums never decrease."""

    names: list[str]
    """The newest names, so no process is added twice."""
    readings: list[Reading]

    def add(self, name: str, data: bytes) -> "EndedProcesses":
        """Add another process's counts and return the sums."""
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
    """Return our metrics and the process metrics."""
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
    """Merge metrics of the same name. If the kinds differ, for example between versions, the first one is used."""
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


def _text(readings: Iterable[Reading]) -> bytes:
    import prometheus_client  # noqa: PLC0415  as above

    metrics: list[Any] = []
    for each in readings:
        if each.samples:
            metric = prometheus_client.Metric(each.name.removesuffix("_total"), each.help, each.kind)
            for name, *labels in each.samples:
                pairs = dict(zip(labels[::2], labels[1::2], strict=True))
                metric.add_sample(name, pairs, each.samples[name, *labels])
            metrics.append(metric)
    collector: Any = SimpleNamespace(collect=lambda: metrics)  # it has the only method that is called
    return prometheus_client.generate_latest(collector)
