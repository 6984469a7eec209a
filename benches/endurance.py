"""The load test of the seeds, larger, and what one reader who stops reading does to the others.

Mixed load: 1,000 event streams, 500 calls a second, and broadcasts by the clock, made by calls of a tool. Before it so
much is published that history and journal have reached their size; the first half of the run is warm-up for the slope.
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
"""Subscribers."""
CALLS = 500
EVENTS = 40
"""Broadcasts a second."""
FILL = 11_000
"""Events that fill the journal (`HubLimits.journal`)."""
MOST_SLOPE = 10.0
MOST_CHANGE = 1.1
STALL_SIZE = 16_384
"""Bytes of an event, so that what the kernel keeps for a reader is full within seconds."""
STALL_EVENTS = 25


@dataclass(frozen=True)
class Mixed:
    """One run of mixed load; everything was answered and delivered as it must be."""

    calls: float
    call_p50: float
    """Milliseconds from the moment that a call was due."""
    call_p99: float
    deliveries: float
    p50: float
    """Milliseconds from the moment that an event was due to its last subscriber."""
    p99: float
    slope: float
    """MiB that resident memory grows in ten minutes, by the second half of the run."""
    busy: float
    """Share of its core that the server had, in percent."""


@dataclass(frozen=True)
class Stalled:
    """The same load without and with a subscriber who does not read."""

    p99: float
    p99_stalled: float
    ratio: float
    cut: float
    """How many subscribers were told that they are cut, as `slow`."""


def mixed(name: str, seconds: float, log: Path) -> Mixed:
    """Calls and broadcasts at fixed rates beside each other.

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
    """Broadcasts to all, and the same beside one who stalls until it is cut: without, beside, beside, without.

    A p99 of some seconds moves with whatever else the machine does. In this order a drift of the machine falls on both.

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
    """Resident memory by time, a sample a second, while the block runs."""
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
    """Growth a second of what was sampled, by least squares."""
    if len(samples) < 2:
        return 0.0
    times, values = zip(*samples, strict=True)
    return statistics.linear_regression(times, values).slope
