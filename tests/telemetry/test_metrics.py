import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from millstream._telemetry.metrics import (
    DURATIONS,
    FINE,
    MAX_SERIES,
    OTHER,
    Metrics,
    Reading,
    dump,
    percentiles,
    quantile,
    render_sums,
)


def text_of(registry: Metrics) -> bytes:
    """Return the text of the metrics, without those of the process."""
    names = {reading.name for reading in registry.readings()}
    readings = msgspec.msgpack.decode(dump(registry), type=list[Reading])
    return render_sums([], [each for each in readings if each.name in names])


def families(registry: Metrics) -> dict[str, Metric]:
    """Return the metric families as Prometheus reads them."""
    return {family.name: family for family in text_string_to_metric_families(text_of(registry).decode())}


def samples(registry: Metrics, name: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return (name, label values) -> value of one family."""
    return {(each.name, tuple(each.labels.values())): each.value for each in families(registry)[name].samples}


def test_metrics_follow_the_exposition_format() -> None:
    registry = Metrics()
    registry.counter("events_total", "Events sent.", ("kind",)).add(("new",), 3)
    registry.read("gauge", "depth", "How deep.", lambda: {(): 1.5})
    registry.histogram("took_seconds", "Time taken.", ("tool",), bounds=(0.1, 1.0)).observe(0.1, ("add",))
    assert text_of(registry) == (
        b"# HELP events_total Events sent.\n"
        b"# TYPE events_total counter\n"
        b'events_total{kind="new"} 3.0\n'
        b"# HELP depth How deep.\n"
        b"# TYPE depth gauge\n"
        b"depth 1.5\n"
        b"# HELP took_seconds Time taken.\n"
        b"# TYPE took_seconds histogram\n"
        b'took_seconds_bucket{le="0.1",tool="add"} 1.0\n'
        b'took_seconds_bucket{le="1.0",tool="add"} 1.0\n'
        b'took_seconds_bucket{le="+Inf",tool="add"} 1.0\n'
        b'took_seconds_sum{tool="add"} 0.1\n'
        b'took_seconds_count{tool="add"} 1.0\n'
    )


def test_unlabeled_metrics_start_at_zero() -> None:
    registry = Metrics()
    registry.counter("plain_total", "Plain.")
    registry.counter("labeled_total", "Labeled.", ("a",))
    registry.histogram("labeled", "Labeled.", ("a",))
    assert text_of(registry) == b"# HELP plain_total Plain.\n# TYPE plain_total counter\nplain_total 0.0\n"
    assert Metrics().histogram("plain", "Plain.").of().counts == [0] * (len(DURATIONS) + 1)


def test_callback_metrics_are_evaluated_at_each_scrape() -> None:
    registry = Metrics()
    values: dict[tuple[str, ...], float] = {}
    registry.read("counter", "sent_total", "Sent.", lambda: values, ("to",))
    assert text_of(registry) == b""
    values[("x",)] = 4
    assert samples(registry, "sent") == {("sent_total", ("x",)): 4}


def test_lone_surrogates_in_labels_are_harmless() -> None:
    registry = Metrics()
    registry.read("gauge", "g", "G.", lambda: {("a\ud800b",): 1}, ("v",))
    assert b'g{v="a?b"} 1.0\n' in text_of(registry)


def test_buckets_include_their_upper_bound() -> None:
    registry = Metrics()
    histogram = registry.histogram("h", "H.", bounds=(1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(value)
    assert samples(registry, "h") == {
        ("h_bucket", ("1.0",)): 2,
        ("h_bucket", ("2.0",)): 4,
        ("h_bucket", ("+Inf",)): 5,
        ("h_sum", ()): 104.0,
        ("h_count", ()): 5,
    }


@given(st.lists(st.floats(0, 1000)))
def test_finer_bounds_do_not_change_the_exposition(values: list[float]) -> None:
    registry = Metrics()
    plain = registry.histogram("plain", "P.")
    fine = registry.histogram("fine", "P.", finer=FINE)
    for value in values:
        plain.observe(value)
        fine.observe(value)
    one, other = text_of(registry).split(b"# HELP fine")
    assert one.replace(b"plain", b"fine").removeprefix(b"# HELP fine") == other
    assert set(DURATIONS) < set(fine.bounds)


@given(st.lists(st.floats(0.00001, 60), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_in_the_right_bucket(values: list[float], q: float) -> None:
    histogram = Metrics().histogram("h", "H.", finer=FINE)
    for value in values:
        histogram.observe(value)
    found = quantile(histogram.bounds, histogram.of().counts, q)
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    assert found is not None
    edges = (0.0, *histogram.bounds, math.inf)
    upper = next(edge for edge in edges if edge >= true)
    assert edges[edges.index(upper) - 1] <= found * 1.000001
    assert found <= upper * 1.000001


def test_percentiles_are_equal_after_one_call() -> None:
    bounds, nothing = (0.001, 0.002, 0.004), {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    assert len(set(percentiles(bounds, [0, 1, 0, 0]).values())) == 1
    assert percentiles(bounds, [0, 9, 1, 0])["p50_ms"] < 2 < percentiles(bounds, [0, 9, 1, 0])["p95_ms"]
    assert percentiles(bounds, [0, 0, 0, 0]) == nothing


def test_quantiles_at_zero_and_one_are_defined() -> None:
    assert quantile((1.0, 2.0), [0, 0, 0], 0.5) is None
    assert quantile((1.0, 2.0), [0, 0, 4], 0.5) == 2.0
    assert quantile((1.0, 2.0), [4, 0, 0], 0.5) == 0.5
    assert quantile((1.0, 4.0), [0, 4, 0], 0.5) == 2.0
    assert quantile((1.0, 2.0), [4, 0, 0], 0.0) == 0.0


def test_client_supplied_labels_are_bounded() -> None:
    registry = Metrics()
    counter = registry.counter("c_total", "C.", ("v",))
    histogram = registry.histogram("h", "H.", ("v",))
    for number in range(MAX_SERIES + 7):
        counter.add((str(number),))
        histogram.observe(1, (str(number),))
    for metric in (counter.values, histogram.series):
        assert len(metric) == MAX_SERIES + 1
    assert counter.values[(OTHER,)] == 7
    assert sum(histogram.series[(OTHER,)].counts) == 7


def test_names_of_metrics_are_unique() -> None:
    registry = Metrics()
    registry.counter("c", "")
    with pytest.raises(ValueError, match="already"):
        registry.counter("c", "")
