"""Counters, gauges and histograms, written as Prometheus text (exposition format 0.0.4).

A series is a tuple of label values in the order in which the metric names its labels. Every metric holds a bounded
number of series: what a peer can name must not fill memory, so further ones are counted together under ``_other``.
For one event loop. Nothing here knows what is measured.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from msgspec import Struct

from millstream._telemetry.sketch import size, sketch

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge"]
Merge = Literal["sum", "max", "min"]
"""What the figures of several processes make together."""
Read = Callable[[], Mapping[Labels, float]]
"""Gives the values of a metric at the time of rendering."""

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
OTHER = "_other"
MAX_SERIES = 1000

DURATIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds; the bounds that the OpenTelemetry conventions for MCP ask for."""
FINE = tuple(
    float(f"{digit}e{power}") for power in range(-5, 2) for digit in ("1", "1.5", "2", "3", "4", "5", "6", "8")
)
"""Bounds that quantiles lie between: nearly all of our calls end before the first of `DURATIONS`."""
SHARES = (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99))

_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_VALUE_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Family(Struct, frozen=True):
    """What all series of a metric share."""

    name: str
    help: str
    labels: tuple[str, ...]
    max_series: int = MAX_SERIES

    def admit(self, labels: Labels, held: int) -> Labels:
        """The series under which to file new label values: themselves, or ``_other`` when `held` are there already.

        Raises:
            ValueError: there are not as many values as labels.
        """
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {len(labels)} of them.")
        return labels if held < self.max_series or not labels else (OTHER,) * len(labels)


class Dump(Struct, array_like=True):
    """A metric as one process tells it to another."""

    name: str
    help: str
    kind: str
    labels: tuple[str, ...]
    merge: Merge
    bounds: tuple[tuple[float, ...], tuple[float, ...]]
    """Of a histogram: those that are shown, and all."""
    series: dict[Labels, list[int | float] | bytes]
    """One value; or the counts of a histogram and their sum; or the map of what is to be counted once."""


class Metric(Protocol):
    """What a registry renders."""

    kind: str
    family: Family

    def dump(self) -> Dump:
        """The metric as it is now, for another process."""
        ...

    def lines(self) -> Iterator[str]:
        """The samples, each without its end of line."""
        ...


AnyMetric = TypeVar("AnyMetric", bound=Metric)


class Counter:
    """Counts up."""

    __slots__ = ("family", "values")
    kind = "counter"

    def __init__(self, family: Family) -> None:
        self.family: Family = family
        self.values: dict[Labels, float] = {} if family.labels else {(): 0}

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        """Count `amount` for one series; it is not negative."""
        values = self.values
        if labels not in values:
            labels = self.family.admit(labels, len(values))
            values.setdefault(labels, 0)
        values[labels] += amount

    def lines(self) -> Iterator[str]:
        return _samples(self.family, self.values)

    def dump(self) -> Dump:
        return _dump(self.family, self.kind, "sum", self.values)


class ReadMetric:
    """A counter or gauge whose values somebody else keeps; asked for when rendered."""

    __slots__ = ("family", "kind", "merge", "read")

    def __init__(self, family: Family, kind: Kind, read: Read, merge: Merge = "sum") -> None:
        self.family = family
        self.kind: str = kind
        self.read = read
        self.merge: Merge = merge

    def lines(self) -> Iterator[str]:
        return _samples(self.family, self.read())

    def dump(self) -> Dump:
        return _dump(self.family, self.kind, self.merge, self.read())


class Distinct:
    """A gauge of different things, of which several processes may see the same."""

    __slots__ = ("family", "names")
    kind = "gauge"

    def __init__(self, family: Family, names: Callable[[], Mapping[Labels, Collection[str]]]) -> None:
        self.family = family
        self.names = names

    def lines(self) -> Iterator[str]:
        return _samples(self.family, {labels: len(names) for labels, names in self.names().items()})

    def dump(self) -> Dump:
        family = self.family
        series: dict[Labels, list[int | float] | bytes] = {
            labels: sketch(names) for labels, names in self.names().items()
        }
        return Dump(family.name, family.help, self.kind, family.labels, "sum", ((), ()), series)


class Series:
    """One series of a histogram. Keep it where the same labels come again: `observe` is then all there is to pay."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds: Sequence[float] = bounds
        self.counts: list[int] = [0] * (len(bounds) + 1)
        """How many were at most each bound and above the one before it; the last for those above all."""
        self.total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def quantile(self, q: float) -> float | None:
        """The value below which a share `q` (0 to 1) lies, as exact as the bounds; None when nothing was counted."""
        return quantile(self.bounds, self.counts, q)


class Histogram:
    """Counts values by size."""

    __slots__ = ("_shown", "bounds", "family", "series")
    kind = "histogram"

    def __init__(self, family: Family, bounds: Sequence[float], finer: Sequence[float] = ()) -> None:
        self.family: Family = family
        self.bounds: tuple[float, ...] = tuple(sorted({*bounds, *finer}))
        """The bounds that are counted by. Only `bounds` are rendered, with the sums of the finer ones."""
        self.series: dict[Labels, Series] = {} if family.labels else {(): Series(self.bounds)}
        self._shown = tuple((self.bounds.index(bound) + 1, _number(bound)) for bound in sorted(bounds))

    def of(self, labels: Labels = ()) -> Series:
        """The series of these label values; makes it if it's new."""
        series = self.series.get(labels)
        if series is None:
            labels = self.family.admit(labels, len(self.series))
            series = self.series.setdefault(labels, Series(self.bounds))
        return series

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one value in one series."""
        self.of(labels).observe(value)

    def lines(self) -> Iterator[str]:
        """The samples: cumulative buckets, sum and count of each series."""
        name = self.family.name
        for labels, series in self.series.items():
            pairs = _pairs(self.family.labels, labels)
            start = below = 0
            for end, bound in self._shown:
                below += sum(series.counts[start:end])
                start = end
                yield f"{name}_bucket{_braces([*pairs, _le(bound)])} {below}"
            below += sum(series.counts[start:])
            yield f"{name}_bucket{_braces([*pairs, _le('+Inf')])} {below}"
            yield f"{name}_sum{_braces(pairs)} {_number(series.total)}"
            yield f"{name}_count{_braces(pairs)} {below}"

    def dump(self) -> Dump:
        family, shown = self.family, tuple(self.bounds[end - 1] for end, _ in self._shown)
        series: dict[Labels, list[int | float] | bytes] = {
            labels: [*each.counts, each.total] for labels, each in self.series.items()
        }
        return Dump(family.name, family.help, self.kind, family.labels, "sum", (shown, self.bounds), series)


class Metrics:
    """The metrics of one running server, rendered in the order in which they were made."""

    __slots__ = ("_metrics",)

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help: str, labels: Labels = ()) -> Counter:
        """A new counter; its name ends in ``_total`` by convention.

        Raises:
            ValueError: the name is taken, or no name of the text format. The same for the other kinds.
        """
        return self._add(Counter(_family(name, help, labels)))

    def histogram(
        self,
        name: str,
        help: str,
        labels: Labels = (),
        *,
        bounds: Sequence[float] = DURATIONS,
        finer: Sequence[float] = (),
    ) -> Histogram:
        """A new histogram; `finer` bounds serve `quantile` and are not rendered."""
        if "le" in labels:
            raise ValueError("The label 'le' of a histogram is its own.")
        return self._add(Histogram(_family(name, help, labels), bounds, finer))

    def read(self, kind: Kind, name: str, help: str, read: Read, labels: Labels = (), *, merge: Merge = "sum") -> None:
        """A new counter or gauge whose values are read from `read` at each rendering."""
        self._add(ReadMetric(_family(name, help, labels), kind, read, merge))

    def distinct(
        self, name: str, help: str, names: Callable[[], Mapping[Labels, Collection[str]]], labels: Labels = ()
    ) -> None:
        """A new gauge that counts different names, also those of several processes together."""
        self._add(Distinct(_family(name, help, labels), names))

    def dump(self) -> list[Dump]:
        """All metrics as they are now, for another process."""
        return [metric.dump() for metric in self._metrics.values()]

    def restore(self, dump: Dump) -> None:
        """A new metric with the values that another process had."""
        name, labels, (shown, bounds) = dump.name, dump.labels, dump.bounds
        if dump.kind == "histogram":
            histogram = self.histogram(name, dump.help, labels, bounds=shown, finer=bounds)
            for values, counts in dump.series.items():
                series = histogram.series[values] = Series(histogram.bounds)
                series.counts, series.total = [int(each) for each in counts[:-1]], counts[-1]
            return
        known = {values: size(each) if isinstance(each, bytes) else each[0] for values, each in dump.series.items()}
        self.read("counter" if dump.kind == "counter" else "gauge", name, dump.help, lambda: known, labels)

    def render(self) -> bytes:
        """All metrics as text; a metric without samples is left out."""
        lines: list[str] = []
        for metric in self._metrics.values():
            samples = list(metric.lines())
            if samples:
                family = metric.family
                lines.append(f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}")
                lines.append(f"# TYPE {family.name} {metric.kind}")
                lines += samples
        lines.append("")
        return "\n".join(lines).encode(errors="replace")

    def _add(self, metric: AnyMetric) -> AnyMetric:
        name = metric.family.name
        if name in self._metrics:
            raise ValueError(f"There is a metric named {name} already.")
        self._metrics[name] = metric
        return metric


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The value below which a share `q` lies, by the counts between bounds; None when all counts are 0.

    Within a bucket values are taken as spread evenly on a logarithmic scale, in the first one from 0 on evenly. What
    lies above every bound counts as the last bound.
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
    """What a page shows of durations that were counted in seconds: each of `SHARES`, in milliseconds."""
    found = {name: quantile(bounds, counts, share) for name, share in SHARES}
    return {name: None if value is None else round(value * 1000, 3) for name, value in found.items()}


def _family(name: str, help: str, labels: Labels) -> Family:
    if not _METRIC_NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't be the name of a metric.")
    for label in labels:
        if not _LABEL_NAME.fullmatch(label):
            raise ValueError(f"{label!r} can't be the name of a label.")
    if len(set(labels)) != len(labels):
        raise ValueError(f"{name} names a label twice.")
    return Family(name, help, labels)


def _dump(family: Family, kind: str, merge: Merge, values: Mapping[Labels, float]) -> Dump:
    series: dict[Labels, list[int | float] | bytes] = {labels: [value] for labels, value in values.items()}
    return Dump(family.name, family.help, kind, family.labels, merge, ((), ()), series)


def _samples(family: Family, values: Mapping[Labels, float]) -> Iterator[str]:
    for labels, value in values.items():
        yield f"{family.name}{_braces(_pairs(family.labels, labels))} {_number(value)}"


def _pairs(names: Labels, values: Labels) -> list[str]:
    """`name="value"` of each label; an empty value means the same as no label and is left out."""
    return [f'{name}="{value.translate(_VALUE_ESCAPES)}"' for name, value in zip(names, values, strict=True) if value]


def _le(bound: str) -> str:
    return f'le="{bound}"'


def _braces(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    if isinstance(value, float):
        if math.isinf(value):
            return "+Inf" if value > 0 else "-Inf"
        if math.isnan(value):
            return "NaN"
    return repr(value)
