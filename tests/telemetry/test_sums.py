"""The metrics of several processes as one: sums, also of those that have ended, and things that two have seen."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from millstream._telemetry import sums
from millstream._telemetry.metrics import Metrics
from millstream._telemetry.sketch import BITS, size, sketch, union

BY = ("tool",)


def process(calls: int, sessions: list[str], *, since: float, bounds: tuple[float, ...] = (1.0, 2.0)) -> bytes:
    """What one process tells."""
    metrics = Metrics()
    metrics.counter("calls_total", "Calls.", BY).add(("add",), calls)
    metrics.read("gauge", "memory_bytes", "Memory.", lambda: {(): 100})
    metrics.read("gauge", "start_seconds", "Start.", lambda: {(): since}, merge="min")
    metrics.distinct("sessions", "Sessions.", lambda: {("http",): sessions}, ("transport",))
    durations = metrics.histogram("seconds", "Time.", BY, bounds=bounds, finer=(1.5,))
    for _ in range(calls):
        durations.observe(1.2, ("add",))
    return sums.dump(metrics)


def samples(text: bytes) -> dict[str, float]:
    """Name and labels -> value."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counts_add_up_and_what_two_have_seen_counts_once() -> None:
    """Fixed defect: a session whose requests go to two workers counted as two."""
    found = samples(sums.render([process(2, ["a", "b"], since=7.0), process(3, ["b", "c"], since=5.0)]))
    assert found == {
        "calls_total add": 5,
        "memory_bytes": 200,
        "start_seconds": 5.0,
        "sessions http": 3,
        "seconds_bucket add 1.0": 0,
        "seconds_bucket add 2.0": 5,
        "seconds_bucket add +Inf": 5,
        "seconds_count add": 5,
        "seconds_sum add": pytest.approx(6.0),
    }


def test_what_a_process_counted_stays_when_it_has_ended_and_what_it_had_is_gone() -> None:
    """A counter that falls looks to Prometheus like a start, and its rate is wrong."""
    ended = sums.Ended([], [])
    for name, calls in (("one", 2), ("two", 3), ("two", 3)):
        ended = sums.add_ended(ended, name, process(calls, ["a"], since=1.0))
    ended = msgspec.msgpack.decode(msgspec.msgpack.encode(ended), type=sums.Ended)
    found = samples(sums.render([process(1, ["z"], since=9.0)], ended.dumps))
    assert found["calls_total add"] == found["seconds_count add"] == 6
    assert (found["memory_bytes"], found["sessions http"], found["start_seconds"]) == (100, 1, 9.0)


def test_a_metric_that_another_version_measures_differently_spoils_nothing() -> None:
    """Workers of two versions run at once while all are restarted."""
    found = samples(
        sums.render([process(1, [], since=1.0), process(1, [], since=1.0, bounds=(3.0,)), process(1, [], since=2.0)])
    )
    assert (found["seconds_count add"], found["calls_total add"]) == (2, 3)


@pytest.mark.parametrize("count", [0, 1, 10, 1_000, 10_000])
def test_different_names_are_counted_nearly_right(count: int) -> None:
    """Linear counting: within 2 % up to 10,000, and right for a few."""
    one = sketch(f"session {number}" for number in range(count))
    other = sketch(f"session {number}" for number in range(count // 2, count))
    assert len(one) * 8 == BITS
    assert union(one, other) == one
    assert size(one) == pytest.approx(count, rel=0.02)
