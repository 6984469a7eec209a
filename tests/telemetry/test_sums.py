import time

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from millstream._telemetry.metrics import EndedProcesses, Kind, Metrics, dump, render_sums

BY = ("tool",)


def process(calls: int, *, since: float, kind: Kind = "gauge") -> bytes:
    """Return the metrics of one process."""
    metrics = Metrics()
    metrics.counter("calls_total", "Calls.", BY).add(("add",), calls)
    metrics.read(kind, "memory_bytes", "Memory.", lambda: {(): 100})
    metrics.read("gauge", "start_seconds", "Start.", lambda: {(): since}, merge="min")
    durations = metrics.histogram("seconds", "Time.", BY, bounds=(1.0, 2.0), finer=(1.5,))
    for _ in range(calls):
        durations.observe(1.2, ("add",))
    return dump(metrics)


def samples(text: bytes) -> dict[str, float]:
    """Return name and labels -> value."""
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_counts_are_summed_and_starts_are_the_earliest() -> None:
    found = samples(render_sums([process(2, since=7.0), process(3, since=5.0)]))
    assert found.pop("process_resident_memory_bytes") > 2**21
    assert 0 < found.pop("process_start_time_seconds") <= time.time()
    assert {name: value for name, value in found.items() if not name.startswith(("process_", "python_"))} == {
        "calls_total add": 5,
        "memory_bytes": 200,
        "start_seconds": 5.0,
        "seconds_bucket 1.0 add": 0,
        "seconds_bucket 2.0 add": 5,
        "seconds_bucket +Inf add": 5,
        "seconds_count add": 5,
        "seconds_sum add": pytest.approx(6.0),
    }


def test_counters_from_ended_processes_stay_and_gauges_disappear() -> None:
    ended = EndedProcesses([], [])
    for name, calls in (("one", 2), ("two", 3), ("two", 3)):
        ended = ended.add(name, process(calls, since=1.0))
    ended = msgspec.msgpack.decode(msgspec.msgpack.encode(ended), type=EndedProcesses)
    found = samples(render_sums([process(1, since=9.0)], ended.readings))
    assert found["calls_total add"] == found["seconds_count add"] == 6
    assert (found["memory_bytes"], found["start_seconds"]) == (100, 9.0)


def test_metrics_of_another_type_are_ignored() -> None:
    found = samples(render_sums([process(1, since=1.0), process(1, since=1.0, kind="counter"), process(1, since=2.0)]))
    assert (found["memory_bytes"], found["calls_total add"]) == (200, 3)
