"""The cost of several workers with a shared store, compared with one worker and its own memory: interleaved, with
ratios by round.

    python -m benches.across [ROUNDS SECONDS]
    python -m benches.across broadcast [ROUNDS]        only what subscribers get, of everything below

The machine has two cores, so the processor time of the servers is the honest figure. That of Redis is printed
separately. `make bench` installs the load generator and the peers that this needs.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benches import http_load, processes
from benches.processes import ROOT, Running
from benches.stores import cpu_of, percentile
from benches.targets import RUN
from benches.wire import CALL, COMMON, KINDS, SESSIONS, Kind, _body

LOGGED = Kind(
    f"{COMMON}mcp-protocol-version: 2025-11-25\r\n",
    _body("tools/call", CALL | {"name": "add_logged"}),
    sessions=SESSIONS,
)
"""A call in a session whose tool logs five messages: its reply is an event stream."""
EVENTS = 2_000
SUBSCRIBERS = 200
"""Subscribers per worker in a broadcast."""
IN_A_ROW = 300


@contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """Run Redis, and yield its URL and process."""
    port = processes.free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder), "--logfile", "redis.log"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def serve(folder: Path, name: str, *options: str) -> Running:
    """Run one of our servers."""
    port = processes.free_port()
    command = [*RUN, "--port", str(port), "--log-level", "warning", "--serve", "hub", *options]
    env = {"MILLSTREAM_SECRET_KEY": "k" * 40, "BENCH_LOGGED": "1"}
    return processes.start(command, env, port, folder / f"{name}.log")


def in_turn(title: str, kind: Kind, servers: dict[str, Running], rounds: int, seconds: float) -> None:
    """Load each server in turn, and return the ratios of each to the first."""
    found: dict[str, list[http_load.Load]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            found[name].append(http_load.drive(server, kind, seconds))
    first = next(iter(servers))
    for name, loads in found.items():
        rate = median(load.rate / base.rate for load, base in zip(loads, found[first], strict=True))
        cpu = median(load.cpu_us / base.cpu_us for load, base in zip(loads, found[first], strict=True))
        show(
            f"{title}, {name}",
            a_second=median(load.rate for load in loads),
            cpu_us=median(load.cpu_us for load in loads),
            rate_ratio=rate,
            cpu_ratio=cpu,
            p50_ms=median(load.p50 for load in loads),
            p99_ms=median(load.p99 for load in loads),
        )


class Listener:
    """One subscriber of an event stream."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.count = 0
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self, port: int) -> None:
        """Subscribe."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        self.writer.write(
            b"GET /events?channel=bench HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n\r\n" % port
        )
        await self.reader.readuntil(b"\r\n\r\n")
        self.task = asyncio.ensure_future(self._read())
        await asyncio.sleep(0.3)
        self.count = 0

    async def _read(self) -> None:
        rest = b""
        while data := await self.reader.read(2**20):
            self.count += (rest + data).count(b"data: ")
            rest = (rest + data)[-5:]  # an event may arrive in two pieces
            self.arrived.set()

    async def until(self, count: int) -> None:
        """Wait for a number of events."""
        async with asyncio.timeout(60):
            while self.count < count:
                self.arrived.clear()
                await self.arrived.wait()


async def publisher(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Return a connection for publishing, and the request."""
    body = json.dumps({"channel": "bench", "data": "x" * 100}).encode()
    head = (
        b"POST /publish HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    return reader, writer, head % (port, len(body)) + body


async def answered(reader: asyncio.StreamReader) -> None:
    """Read one response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length.partition(b":")[2]))


async def latency(port: int, other: int) -> list[float]:
    """Return the milliseconds from each publication at one port to its arrival at a subscriber on another."""
    listener = Listener()
    await listener.open(other)
    reader, writer, request = await publisher(port)
    took: list[float] = []
    for number in range(IN_A_ROW):
        began = time.perf_counter()
        writer.write(request)
        await listener.until(number + 1)
        took.append((time.perf_counter() - began) * 1000)
        await answered(reader)
    for each in (writer, listener.writer):
        each.close()
    listener.task.cancel()
    return took[IN_A_ROW // 10 :]


async def publish_many(server: Running, events: int, *, publishers: int = 64) -> float:
    """Return the publications per second of the server's core."""

    async def one(count: int) -> None:
        reader, writer, request = await publisher(server.port)
        for _ in range(count):
            writer.write(request)
            await answered(reader)
        writer.close()

    before = server.cpu()
    await asyncio.gather(*(one(events // publishers) for _ in range(publishers)))
    return events / (server.cpu() - before)


async def broadcast(servers: list[Running], events: int, *, shared: bool) -> float:
    """Return the deliveries per second of a core while both servers work. Each delivers all events to its subscribers.
    With a shared store, only some were published on the same server.
    """
    listeners = [Listener() for _ in range(SUBSCRIBERS * len(servers))]
    await asyncio.gather(
        *(each.open(servers[number % len(servers)].port) for number, each in enumerate(listeners)),
    )
    before = sum(server.cpu() for server in servers)
    here = events // len(servers) if shared else events
    await asyncio.gather(*(publish_many(server, here, publishers=8) for server in servers))
    await asyncio.gather(*(each.until(events) for each in listeners))
    used = sum(server.cpu() for server in servers) - before
    for each in listeners:
        each.task.cancel()
        each.writer.close()
    return events * len(listeners) / used


def measure(folder: Path, rounds: int, seconds: float) -> None:
    """Measure everything, in turn."""
    with redis(folder) as (url, pid):
        alone = serve(folder, "alone")
        shared = serve(folder, "redis", "--store", url)
        beside = serve(folder, "beside", "--store", url)
        four = serve(folder, "four", "--workers", "4")
        try:
            session = KINDS["call-session"]
            before, began = cpu_of(pid), time.perf_counter()
            in_turn("session calls", session, {"memory": alone, "redis": shared}, rounds, seconds)
            in_turn("calls that log 5 messages", LOGGED, {"memory": alone, "redis": shared}, rounds, seconds)
            show("redis meanwhile", core_percent=(cpu_of(pid) - before) / (time.perf_counter() - began) * 100)
            in_turn("plain calls", KINDS["call-2026"], {"1 worker": alone, "4 workers": four}, rounds, seconds)
            in_turn("session calls", session, {"1 worker": alone, "4 workers": four}, rounds, seconds)
            near: list[float] = []
            far: list[float] = []
            for _ in range(rounds):
                near += asyncio.run(latency(alone.port, alone.port))
                far += asyncio.run(latency(shared.port, beside.port))
            show(
                "publish to arrival, ms",
                memory_p50=percentile(near, 0.5), memory_p99=percentile(near, 0.99),
                redis_p50=percentile(far, 0.5), redis_p99=percentile(far, 0.99),
                added_p50=percentile(far, 0.5) - percentile(near, 0.5),
                added_p99=percentile(far, 0.99) - percentile(near, 0.99),
            )  # fmt: skip
            for name, server in (("memory", alone), ("redis", shared)):
                figures = [asyncio.run(publish_many(server, EVENTS * 10)) for _ in range(rounds)]
                show(f"publishes over HTTP, {name}", a_second_of_a_core=median(figures))
        finally:
            for server in (alone, shared, beside, four):
                server.stop()


def measure_broadcast(folder: Path, rounds: int) -> None:
    """Compare two servers that share Redis with two that have separate events."""
    with redis(folder) as (url, pid):
        alone = [serve(folder, name) for name in ("first", "second")]
        shared = [serve(folder, name, "--store", url) for name in ("third", "fourth")]
        try:
            before, began = cpu_of(pid), time.perf_counter()
            one, two = [], []
            for _ in range(rounds):
                one.append(asyncio.run(broadcast(alone, EVENTS, shared=False)))
                two.append(asyncio.run(broadcast(shared, EVENTS, shared=True)))
            show(
                f"deliveries to {SUBSCRIBERS} subscribers of each worker, a second of a core",
                two_alone=median(one), two_with_redis=median(two),
                ratio=median(far / near for near, far in zip(one, two, strict=True)),
                redis_core_percent=(cpu_of(pid) - before) / (time.perf_counter() - began) * 100,
            )  # fmt: skip
        finally:
            for server in (*alone, *shared):
                server.stop()


def show(title: str, **figures: float) -> None:
    """Print a line."""
    print(f"{title}: " + "  ".join(f"{name} {figure:,.3f}" for name, figure in figures.items()), flush=True)


def main() -> None:
    only = sys.argv[1:2] == ["broadcast"]
    given = [float(each) for each in sys.argv[1 + only :]]
    rounds, seconds = (*given, *(5.0, 2.0)[len(given) :])
    processes.raise_file_limit()
    print(sys.version.split()[0], os.cpu_count(), "cores, load", os.getloadavg()[0], ROOT.name)
    with tempfile.TemporaryDirectory() as folder:
        if not only:
            measure(Path(folder), int(rounds), seconds)
        measure_broadcast(Path(folder), int(rounds))


if __name__ == "__main__":
    main()
