"""Broadcasts: the load program beside a server, which is measured while the subscribers are there.

A server is started anew for each measurement, because memory that an earlier one left free would hide what a subscriber
takes. The result includes the load program's share of its core, which must not be the limit.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches import processes
from benches.cases import Broadcast
from benches.processes import LOAD_CORE, ROOT, BenchError, Running, pinned
from benches.targets import TARGETS
from benches.wire import FIRST_EVENT

PROGRAM = ROOT / ".bench" / "subscribers"
AHEAD = 2_000
"""Concurrent deliveries, so neither side waits for the other. At least four events."""


@dataclass(frozen=True)
class Delivered:
    """One measurement."""

    rate: float
    """Deliveries per second."""
    p50: float
    """Milliseconds from the publication of a single event to the last subscriber."""
    p99: float
    cpu_us: float
    """Processor time of the server for one delivery, in microseconds."""
    busy: float
    """The server's share of its core, in percent."""
    load: float
    """The load program's share of its core, during the throughput test."""
    kib: float
    """Resident memory of the server for one subscriber."""


def drive(case: Broadcast, name: str, seconds: float, log: Path) -> Delivered:
    """Start the server, subscribe, publish, and check that every subscriber received each event once, in order.

    Raises:
        BenchError: the server does not start, or an event was missing, wrong or out of order.
    """
    options = ["--window", str(max(4, AHEAD // case.subscribers)), "--lockstep", str(seconds)]
    options += ["--ws"] if case.websocket else []
    options += ["--raw"] if name == "nchan" else []
    with started(name, log) as server:
        before, memory, cpu = server.memory(), [0.0], [0.0]

        def look() -> None:
            memory.append(server.memory())
            cpu.append(server.cpu())

        found = load(server, case.subscribers, seconds, options, look)
    rate = found["rate"]
    cpu_us = (cpu[-1] - cpu[1]) / found["deliveries"] * 1e6
    return Delivered(
        rate,
        found["p50_ms"],
        found["p99_ms"],
        cpu_us,
        cpu_us * rate / 1e4,
        found["load_cpu_us"] * rate / 1e4,
        (max(memory) - before) * 1024 / case.subscribers,
    )


@contextmanager
def started(name: str, log: Path) -> Iterator[Running]:
    """A server that answers `POST /publish`, for the length of the block."""
    target, port = TARGETS[name], processes.free_port()
    server = processes.start(target.command(port), dict(target.environment), port, log, first=FIRST_EVENT)
    try:
        yield server
    finally:
        server.stop()


def load(
    server: Running, subscribers: int, seconds: float, options: list[str], look: Callable[[], None]
) -> dict[str, Any]:
    """Run the load program; `look` is called when all are connected and when all was delivered.

    Raises:
        BenchError: it failed, or what was delivered is not what was published.
    """
    command = [str(PROGRAM), "--port", str(server.port), "--subscribers", str(subscribers), "--seconds", str(seconds)]
    with subprocess.Popen(
        pinned(LOAD_CORE, [*command, "--hold", *options]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        while line and not line.startswith("{"):
            look()
            process.stdin.write("\n")
            process.stdin.flush()
            line = process.stdout.readline()
        trouble = process.stderr.read().strip()
    if process.returncode != 0 or not line:
        raise BenchError(trouble or f"not delivered as published: {line.strip()}")
    found: dict[str, Any] = json.loads(line)
    return found
