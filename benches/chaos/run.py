"""One run: a server of several workers, subscribers that resume, publishers, and somebody who does harm."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benches.chaos.clients import Listener, Publisher, paced
from benches.chaos.history import Publication, check
from benches.processes import ROOT, family, free_port

PATIENCE = 120.0
"""Seconds that are waited for what must come; no measure."""

Harm = Callable[["Cluster"], Awaitable[None]]
"""What is done to the server while clients are at work, until it is cancelled."""


@dataclass
class Cluster:
    """A parent and its workers."""

    port: int
    process: asyncio.subprocess.Process
    log: Path

    def workers(self) -> list[int]:
        """Process ids of the workers that live."""
        return [pid for pid in family(self.process.pid) if pid != self.process.pid and _command(pid)]


@dataclass
class Report:
    """What came out."""

    published: int = 0
    acknowledged: int = 0
    received: int = 0
    gaps: int = 0
    reconnects: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    harm: int = 0
    refused: list[int] = field(default_factory=list)
    seconds: float = 0.0
    """How long clients published."""

    @property
    def rate(self) -> float:
        """Publications a second."""
        return self.published / self.seconds if self.seconds else 0.0

    def quantile(self, part: float) -> float:
        """Seconds of a reconnect, at a part of all."""
        ordered = sorted(self.reconnects)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0

    def __str__(self) -> str:
        return (
            f"{self.acknowledged} of {self.published} publications acknowledged, {self.received} events received, "
            f"{self.gaps} gaps told, {len(self.reconnects)} reconnects (p50 {self.quantile(0.5) * 1000:.0f} ms, "
            f"p99 {self.quantile(0.99) * 1000:.0f} ms), harm done {self.harm} times, {len(self.wrong)} faults"
        )


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@asynccontextmanager
async def cluster(
    log: Path, *, workers: int, store: str = "memory://", environment: dict[str, str] | None = None
) -> AsyncIterator[Cluster]:
    """A server on a free port, up for the length of the block."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("millstream")), "run", str(ROOT / "benches/chaos/server.py")]
    command += ["--port", str(port)] + (["--workers", str(workers)] if workers > 1 else [])
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**_environment(), "CHAOS_STORE": store, **(environment or {})},
        )
        running = Cluster(port, process, log)
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
    """How many workers say that they are ready."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n")
        answer = await reader.read()
        writer.close()
        health = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return 0
    return sum(each["state"] == "ready" for each in health.get("workers", [])) or 1


def kill_workers(every: float, report: Report) -> Harm:
    """SIGKILL for a worker, one after the other."""

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
    running: Cluster,
    report: Report,
    *,
    until: Callable[[], bool],
    subscribers: int,
    rate: float,
    channels: int,
    publishers: int = 16,
    harm: Harm | None = None,
) -> Report:
    """Publish and listen while harm is done, `until` it is enough; then wait for the last event, and compare."""
    names = [f"chaos.{number}" for number in range(channels)]
    log: list[Publication] = []
    listeners = [Listener(running.port, names[number % channels]) for number in range(subscribers)]
    senders = [Publisher(running.port, f"p{number}", log) for number in range(publishers)]
    tasks = [asyncio.create_task(each.run()) for each in listeners]
    try:
        async with asyncio.timeout(PATIENCE):
            while not all(each.last_id for each in listeners):  # noqa: ASYNC110  thousands would have to tell
                await asyncio.sleep(0.02)
        choose, began = itertools.cycle(names), time.monotonic()
        sending = [asyncio.create_task(paced(each, rate / publishers, lambda: next(choose))) for each in senders]
        harming = asyncio.create_task(harm(running)) if harm is not None else None
        while not until():
            await asyncio.sleep(0.1)
            report.seconds = time.monotonic() - began
            for task in (*sending, *([harming] if harming else [])):
                if task.done():
                    task.result()
        if harming is not None:
            harming.cancel()
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, *([harming] if harming else []), return_exceptions=True)
        await _settle(running, listeners, names, log)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sender in senders:
            sender.close()
    report.published += len(log)
    report.acknowledged += sum(bool(each.place) for each in log)
    for each in listeners:
        report.received += sum(hasattr(item, "place") for item in each.log.got)
        report.gaps += sum(not hasattr(item, "place") for item in each.log.got)
        report.reconnects += each.reconnects
    report.refused += [status for sender in senders for status in sender.refused]
    report.wrong += check(log, [each.log for each in listeners])
    return report


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
