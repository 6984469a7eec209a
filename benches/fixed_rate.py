"""Latencies at a fixed rate: each call is due at a certain time, and its latency counts from then.

A connection of wrk sends its next request after the last response. If a server hangs, wrk sees one long wait, and not
the waits of everyone who would have called in the meantime (coordinated omission). `benches/load` sees each of them: a
call that's due while no connection is free waits, and the wait counts.
"""

from dataclasses import dataclass
from typing import Any

from benches import broadcast, http_load
from benches.processes import Running
from benches.wire import Kind

SAME_RATE = 100
"""Calls a second that each server gets, low enough for the slowest one."""


@dataclass(frozen=True)
class FixedRate:
    """A server's maximum, and its latencies at half of that and at the same rate as the others."""

    rate: float
    """Responses per second at the maximum."""
    cpu_us: float
    """Processor time of the server for one response at the maximum, in microseconds."""
    half_p50: float
    """Milliseconds from the time when a call was due to its response, at half of the maximum."""
    half_p99: float
    same_p50: float
    """The same at `SAME_RATE`."""
    same_p99: float
    load: float
    """The load program's share of its core at half of the maximum, in percent. Near 100, it measures itself."""


def drive(server: Running, kind: Kind, seconds: float, connections: int) -> FixedRate:
    """Measure the maximum with wrk, then both rates.

    Raises:
        BenchError: a response was wrong or missing.
    """
    most = http_load.drive(server, kind, seconds, connections)
    half = send(server, kind, seconds, connections, most.rate / 2)
    same = send(server, kind, seconds, connections, SAME_RATE)
    return FixedRate(
        most.rate, most.cpu_us, half["call_p50_ms"], half["call_p99_ms"], same["call_p50_ms"], same["call_p99_ms"],
        half["load_cpu_us"] * most.rate / 2 / 1e4,
    )  # fmt: skip


def send(server: Running, kind: Kind, seconds: float, connections: int, rate: float) -> dict[str, Any]:
    """Send calls at a rate, and return what the load program reports.

    Raises:
        BenchError: a response was wrong or missing.
    """
    options = ["--calls", f"{rate:.3f}", "--callers", str(connections)]
    options += ["--request", http_load.fill(server, kind).decode()]
    return broadcast.load(server, 0, seconds, options, lambda: None)
