"""One run: a server with several workers, subscribers that resume, publishers, and a source of faults."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benches.chaos.clients import Listener, Publisher, Reconnect, paced
from benches.chaos.history import Publication, check
from benches.chaos.proxy import Proxy
from benches.chaos.speakers import KINDS, Speaker
from benches.processes import ROOT, family, free_port

PATIENCE = 120.0
"""Seconds to wait for expected events. It isn't a measurement."""

Harm = Callable[["Cluster"], Awaitable[None]]
"""Injects faults into the server while clients work, until canceled."""


@dataclass
class Cluster:
    """A parent and its workers."""

    port: int
    process: asyncio.subprocess.Process
    log: Path
    count: int
    """Number of workers."""

    def workers(self) -> list[int]:
        """Process ids of the living workers."""
        return [pid for pid in family(self.process.pid) if pid != self.process.pid and _command(pid)]


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """The clients of a run."""

    subscribers: int
    rate: float
    """Publications per second, of all publishers."""
    channels: int
    publishers: int = 16
    proxied: int = 0
    """Additional subscribers behind the proxy, which breaks, delays, and half-closes connections."""
    speakers: int = 0
    """MCP clients of each kind."""
    proxied_speakers: int = 0
    """The same behind the proxy."""

    def speakers_of(self, port: int, proxy: int, channels: list[str], log: list[Publication]) -> list[Speaker]:
        """The MCP clients."""
        ports = [port] * self.speakers + [proxy] * self.proxied_speakers
        return [
            Speaker(where, kind, f"s{number}.{kind}", channels, log)
            for number, where in enumerate(ports)
            for kind in KINDS
        ]


@dataclass
class Report:
    """The results of a run."""

    published: int = 0
    acknowledged: int = 0
    received: int = 0
    gaps: int = 0
    reconnects: list[Reconnect] = field(default_factory=list)
    stood: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each stop of a worker. The kernel continues to accept for it, so some clients wait that long."""
    wrong: list[str] = field(default_factory=list)
    harm: int = 0
    seconds: float = 0.0
    """Seconds that clients published."""
    troubles: Counter[str] = field(default_factory=Counter[str])
    """Faults caused by the proxy."""
    results: Counter[str] = field(default_factory=Counter[str])
    """Calls of MCP clients with a result, by kind."""
    again: Counter[str] = field(default_factory=Counter[str])
    """Calls that ended with a retryable error."""

    def speakers(self) -> str:
        """The outcomes of calls by kind of MCP client, one line each."""
        return "\n".join(f"  {kind}: {self.results[kind]} results, {self.again[kind]} to try again" for kind in KINDS)

    @property
    def rate(self) -> float:
        """Publications a second."""
        return self.published / self.seconds if self.seconds else 0.0

    def _meanwhile(self, reconnect: Reconnect) -> bool:
        """Return whether a worker was stopped during a reconnect."""
        end = reconnect.lost_at + reconnect.seconds
        return any(begin <= end and reconnect.lost_at <= until for begin, until in self.stood)

    def reconnected(self) -> str:
        """Return how long reconnecting took, while all workers could run and while one was stopped."""
        free = sorted(each.seconds for each in self.reconnects if not self._meanwhile(each))
        held = sorted(each.seconds for each in self.reconnects if self._meanwhile(each))
        beside = f" and {len(held)} while a worker was stopped ({_percentiles(held)})" if held else ""
        return f"{len(free)} reconnects ({_percentiles(free)}){beside}"

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} of {self.published} publications acknowledged, {self.received} events received, "
            f"{self.gaps} gaps told, {self.reconnected()}, harm done {self.harm} times, {len(self.wrong)} faults"
        )


def _percentiles(ordered: Sequence[float]) -> str:
    parts = {
        part: ordered[min(len(ordered) - 1, int(part * len(ordered) / 100))] if ordered else 0 for part in (50, 99)
    }
    return ", ".join(f"p{part} {seconds * 1000:.0f} ms" for part, seconds in parts.items())


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@asynccontextmanager
async def cluster(
    log: Path,
    *,
    workers: int,
    store: str = "memory://",
    environment: dict[str, str] | None = None,
    program: str = "server.py",
) -> AsyncIterator[Cluster]:
    """Run a server on a free port inside the block."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("millstream")), "run", str(ROOT / "benches/chaos" / program)]
    command += ["--port", str(port)] + (["--workers", str(workers)] if workers > 1 else [])
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**_environment(), "CHAOS_STORE": store, **(environment or {})},
        )
        running = Cluster(port, process, log, workers)
        try:
            await ready(running, workers)
            yield running
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(PATIENCE):
                        await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}


async def ready(running: Cluster, workers: int) -> None:
    """Wait until all workers serve."""
    async with asyncio.timeout(PATIENCE):
        while await _serving(running.port) < workers:
            if running.process.returncode is not None:
                raise RuntimeError(f"The server ended: {running.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)


async def _serving(port: int) -> int:
    """Return the number of workers that report being ready."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        health = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return 0
    found = health.get("workers", [])  # only counts, if callers sign in
    return (found["ready"] if isinstance(found, dict) else sum(each["state"] == "ready" for each in found)) or 1


def kill_workers(every: float, report: Report) -> Harm:
    """Send SIGKILL to one worker after the other."""

    async def harm(running: Cluster) -> None:
        while True:
            await asyncio.sleep(every)
            workers = running.workers()
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(workers), 9)
                    report.harm += 1

    return harm


async def storm(
    running: Cluster, report: Report, crowd: Crowd, *, until: Callable[[], bool], harm: Harm | None = None
) -> Report:
    """Publish and listen during the faults, `until` it's enough. Then wait for the last event, and compare the
    records."""
    async with Proxy(running.port) as proxy:
        names = [f"chaos.{number}" for number in range(crowd.channels)]
        log: list[Publication] = []
        direct = [Listener(running.port, names[number % len(names)]) for number in range(crowd.subscribers)]
        listeners = direct + [Listener(proxy.port, names[number % len(names)]) for number in range(crowd.proxied)]
        speakers = crowd.speakers_of(running.port, proxy.port, names, log)
        tasks = [asyncio.create_task(each.run()) for each in listeners]
        try:
            async with asyncio.timeout(PATIENCE):
                while not all(each.last_id for each in listeners):  # noqa: ASYNC110  thousands would have to tell
                    await asyncio.sleep(0.02)
            # The faults end first: MCP clients finish their calls, for which a worker has to live for a while.
            async with _speaking(speakers) as speaking, _working(running, crowd, names, log, harm) as working:
                began = time.monotonic()
                while not until():
                    await asyncio.sleep(0.1)
                    report.seconds = time.monotonic() - began
                    for task in (*working, *speaking):
                        if task.done():
                            task.result()
            proxy.calm()
            await _settle(running, listeners, names, log)
        finally:
            await _cancel(tasks)
        report.troubles += proxy.done
    report.published += len(log)
    report.acknowledged += sum(bool(each.place) for each in log)
    for each in listeners:
        report.received += sum(hasattr(item, "place") for item in each.log.got)
        report.gaps += sum(not hasattr(item, "place") for item in each.log.got)
    report.reconnects += [reconnect for each in direct for reconnect in each.reconnects]
    for speaker in speakers:
        report.results[speaker.kind] += speaker.results
        report.again[speaker.kind] += speaker.again.total()
        report.wrong += speaker.wrong
    report.wrong += check(log, [each.log for each in listeners])
    return report


def stop_workers(every: float, seconds: float, report: Report) -> Harm:
    """Send SIGSTOP to a worker, and SIGCONT some time later, so it resumes without knowing that time has passed."""

    async def harm(running: Cluster) -> None:
        while True:
            await asyncio.sleep(every)
            workers = running.workers()
            if not workers:
                continue
            stopped = random.choice(workers)
            began = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGSTOP)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    report.stood.append((began, time.monotonic()))
                    os.kill(stopped, signal.SIGCONT)

    return harm


def half_a_core(report: Report, *others: int) -> Harm:
    """Simulate a container with half a core: its processes are stopped for half of each tenth of a second.

    Args:
        report: counts the stops.
        others: further processes in the container.
    """

    async def harm(running: Cluster) -> None:
        while True:
            pids = (running.process.pid, *running.workers(), *others)
            try:
                _signal(pids, signal.SIGSTOP)
                await asyncio.sleep(0.05)
            finally:
                _signal(pids, signal.SIGCONT)
            report.harm += 1
            await asyncio.sleep(0.05)

    return harm


def _signal(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def together(*harms: Harm) -> Harm:
    """Inject several kinds of faults at the same time."""

    async def harm(running: Cluster) -> None:
        await asyncio.gather(*(each(running) for each in harms))

    return harm


@asynccontextmanager
async def _working(
    running: Cluster, crowd: Crowd, names: list[str], log: list[Publication], harm: Harm | None
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run publishers and faults inside the block."""
    choose, pace = itertools.cycle(names), crowd.rate / crowd.publishers
    senders = [Publisher(running.port, f"p{number}", log) for number in range(crowd.publishers)]
    tasks = [asyncio.create_task(paced(each, pace, lambda: next(choose))) for each in senders]
    if harm is not None:
        tasks.append(asyncio.ensure_future(harm(running)))
    try:
        yield tasks
    finally:
        await _cancel(tasks)
        for sender in senders:
            sender.close()


@asynccontextmanager
async def _speaking(speakers: list[Speaker]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run MCP clients inside the block. At the end, each finishes its call."""
    tasks = [asyncio.create_task(each.run()) for each in speakers]
    try:
        yield tasks
        for each in speakers:
            each.stop()
        async with asyncio.timeout(2 * PATIENCE):
            await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _settle(running: Cluster, listeners: list[Listener], names: list[str], log: list[Publication]) -> None:
    """Publish a last event to each channel, and wait until every subscriber has it."""
    last = Publisher(running.port, "last", log)
    final: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE):
        for name in names:
            while not (publication := await last.publish(name)).place:  # noqa: ASYNC110  the server has to come back
                await asyncio.sleep(0.05)
            final[name] = publication.data
        for each in listeners:
            wanted = final[each.log.channel]
            arrived = each.waiting.setdefault(wanted, asyncio.Event())
            if any(getattr(item, "data", "") == wanted for item in each.log.got):
                continue
            await arrived.wait()
    last.close()
