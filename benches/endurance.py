"""A larger version of the seeds' load test, and the effect of one stalled reader on the others.

Mixed load: 1,000 event streams, 500 calls per second, and broadcasts at a fixed rate, published by a tool. Before that,
enough events are published to fill the history and the journal. The first half of the run is warm-up for the slope.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.broadcast import load, started
from benches.processes import BenchError, Running

MIXED = 1_000
"""Number of subscribers."""
CALLS = 500
EVENTS = 40
"""Broadcasts per second."""
FILL = 11_000
"""Events that fill the journal (`HubLimits.journal`)."""
MOST_SLOPE = 10.0
MOST_CHANGE = 1.1
STALL_SIZE = 16_384
"""Size of an event in bytes, large enough to fill a reader's kernel buffer within seconds."""
STALL_EVENTS = 25


@dataclass(frozen=True)
class Mixed:
    """The result of one run of mixed load, in which all responses and deliveries were correct."""

    calls: float
    call_p50: float
    """Milliseconds from the scheduled time of a call to the response."""
    call_p99: float
    deliveries: float
    p50: float
    """Milliseconds from the scheduled time of an event to the delivery to its last subscriber."""
    p99: float
    slope: float
    """Growth of resident memory in MiB per ten minutes, from the second half of the run."""
    busy: float
    """The server's share of its core, in percent."""


@dataclass(frozen=True)
class Stalled:
    """The same load with and without a subscriber that doesn't read."""

    p99: float
    p99_stalled: float
    ratio: float
    cut: float
    """Number of subscribers that were disconnected with the reason `slow`."""


def mixed(name: str, seconds: float, log: Path) -> Mixed:
    """Run calls and broadcasts at fixed rates at the same time.

    Raises:
        BenchError: an answer or an event was missing, wrong or out of order.
    """
    options = ["--calls", str(CALLS), "--rate", str(EVENTS), "--tool"]
    with started(name, log) as server:
        load(server, 1, 0, ["--events", str(FILL), "--tool"], lambda: None)
        with sampled(server) as samples:
            begun, cpu = time.monotonic(), server.cpu()
            found = load(server, MIXED, seconds, options, lambda: None)
            busy = (server.cpu() - cpu) / (time.monotonic() - begun) * 100
    later = samples[len(samples) // 2 :]
    return Mixed(
        found["calls"], found["call_p50_ms"], found["call_p99_ms"], found["deliveries"], found["p50_ms"],
        found["p99_ms"], slope(later) * 600, busy,
    )  # fmt: skip


def stalled(name: str, seconds: float, log: Path) -> Stalled:
    """Broadcast to all, with and without a stalled subscriber, in the order without, with, with, without.

    The p99 of a few seconds depends on other load on the machine. In this order, a drift affects both.

    Raises:
        BenchError: an event was missing, wrong or out of order, or the stalled one was not cut as `slow`.
    """
    options = ["--rate", str(STALL_EVENTS), "--size", str(STALL_SIZE)]
    runs: dict[int, list[float]] = {0: [], 1: []}
    for stalling in (0, 1, 1, 0):
        with started(name, log) as server:
            found = load(server, MIXED, max(seconds, 20.0), [*options, "--stalled", str(stalling)], lambda: None)
        if found["slow"] != stalling:
            raise BenchError("the stalled reader was not cut as slow")
        runs[stalling].append(found["p99_ms"])
    without, beside = (statistics.mean(runs[stalling]) for stalling in (0, 1))
    return Stalled(without, beside, beside / without, 1)


@contextmanager
def sampled(server: Running) -> Iterator[list[tuple[float, float]]]:
    """Yield samples of resident memory by time, one per second, while the block runs."""
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(1):
            samples.append((time.monotonic(), server.memory()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def slope(samples: list[tuple[float, float]]) -> float:
    """Return the samples' growth per second, by least squares."""
    if len(samples) < 2:
        return 0.0
    times, values = zip(*samples, strict=True)
    return statistics.linear_regression(times, values).slope
