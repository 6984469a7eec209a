"""Upstreams of a gateway are killed, hang, flood, send invalid schemas, and change, without affecting other
upstreams."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benches.chaos.gateway import MISBEHAVING, STEADY, TIMEOUT
from benches.chaos.run import PATIENCE, Cluster
from benches.chaos.upstream import __file__ as program
from benches.endurance import slope
from benches.processes import family, resident
from millstream import Client
from millstream.client import ClientError
from millstream.protocol import ToolDescription

GOOD = ("", *STEADY)
BAD = ("killed", "sessions", *MISBEHAVING)
KILLED = ([b"killed"], [b"sessions"])
"""The last words of the commands that are killed."""
PROCESSES = 40
"""Maximum processes: a worker's upstreams, the worker, its watchdog, and the interpreter's own."""
REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
UPSTREAM = os.fsencode(program)
SLACK = 60.0
"""Seconds beyond the timeout of an upstream after which a call counts as hanging."""


@dataclass
class UpstreamReport:
    """What came out."""

    calls: Counter[str] = field(default_factory=Counter[str])
    """Results by upstream; the gateway's own tool has no name."""
    errors: Counter[str] = field(default_factory=Counter[str])
    """Reported errors by upstream."""
    kills: int = 0
    processes: list[int] = field(default_factory=list[int])
    memory: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Seconds, and MiB of the gateway's own processes together."""
    seen: set[int] = field(default_factory=set[int])
    """Process ids of all upstreams so far."""
    wrong: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        lines = [f"  {name or 'own'}: {self.calls[name]} results, {self.errors[name]} errors" for name in GOOD + BAD]
        low, high = min(self.processes, default=0), max(self.processes, default=0)
        used = [mib for _, mib in self.memory]
        figures = f"{self.kills} kills, {low} to {high} processes, {min(used):.0f} to {max(used):.0f} MiB"
        return "\n".join([*lines, f"{figures}, {len(self.wrong)} faults"])


async def torment(
    running: Cluster, report: UpstreamReport, *, clients: int, rate: float, every: float, until: Callable[[], bool]
) -> None:
    """Call every upstream from clients of every revision while one process after the other is killed.

    It begins once all tools are listed. On a busy machine, the first lists of some take longer than `TIMEOUT`.

    Args:
        running: serves `gateway.py`.
        report: takes what came out.
        clients: how many call upstreams that behave; a fifth as many call each of the others.
        rate: calls of each client a second.
        every: minimum seconds between two kills. After each, one of the killed upstreams has to answer a call.
        until: true when it's enough.
    """
    async with asyncio.timeout(PATIENCE), Client(f"http://127.0.0.1:{running.port}/mcp", timeout=PATIENCE) as client:
        while _missing(await client.tools(fresh=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    async with asyncio.TaskGroup() as tasks:
        revisions = itertools.cycle(REVISIONS)
        callers = [
            tasks.create_task(_call(running.port, next(revisions), names, rate, report, until))
            for names in (*[GOOD] * clients, *[(name,) for name in BAD] * max(1, clients // 5))
        ]
        harm = [tasks.create_task(_kill(running, every, report)), tasks.create_task(_measure(running, report))]
        await asyncio.wait(callers)
        for task in harm:
            task.cancel()
    report.wrong += [f"{name or 'own'} had no call" for name in GOOD + BAD if not report.calls[name]]
    limit = PROCESSES * running.count
    if max(report.processes) > limit:
        report.wrong.append(f"{max(report.processes)} processes, more than {limit}")


async def _call(
    port: int, revision: str, names: tuple[str, ...], rate: float, report: UpstreamReport, until: Callable[[], bool]
) -> None:
    """Call one tool after the other. Those of upstreams that behave never fail."""
    good = names == GOOD
    async with Client(f"http://127.0.0.1:{port}/mcp", revision=revision, timeout=PATIENCE) as client:
        for number in itertools.count():
            if until():
                return
            name = random.choice(names)
            text = f"{revision} {number} {random.random()}"
            begun = time.monotonic()
            try:
                result = await client.call(f"{name}_echo" if name else "echo", text=text)
                failure = f"{result.text!r:.200}" if result.is_error else ""
                if not failure and result.text != text and name != "lying":
                    report.wrong.append(f"{name}: the result of another call")
            except ClientError as exc:
                failure = f"{type(exc).__name__}: {exc}"[:200]
            seconds = time.monotonic() - begun
            if seconds > TIMEOUT + SLACK:
                report.wrong.append(f"{name}: {seconds:.0f} seconds until an answer")
            (report.errors if failure else report.calls)[name] += 1
            if failure and good:
                report.wrong.append(f"{name or 'own'}: {failure}")
            if number % 20 == 0:
                await _list(client, report)
            await asyncio.sleep(random.expovariate(rate))


async def _list(client: Client, report: UpstreamReport) -> None:
    """List tools repeatedly, and check that no list gets shorter because an upstream is down."""
    try:
        missing = _missing(await client.tools(fresh=True))
    except ClientError as exc:
        report.wrong.append(f"tools/list: {exc}")
        return
    if missing:
        report.wrong.append(f"missing in the list: {', '.join(sorted(missing))}")


def _missing(tools: Iterable[ToolDescription]) -> set[str]:
    """Return the tools that are missing from a list."""
    return {"echo", *(f"{name}_echo" for name in (*STEADY, *BAD))} - {tool.name for tool in tools}


async def _kill(running: Cluster, every: float, report: UpstreamReport) -> None:
    """Repeatedly send SIGKILL to one of the processes to kill."""
    while True:
        results = report.calls["killed"] + report.calls["sessions"]
        await asyncio.sleep(every)
        while report.calls["killed"] + report.calls["sessions"] == results:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        found = [pid for pid in family(running.process.pid) if _arguments(pid)[-1:] in KILLED]
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(random.choice(found), signal.SIGKILL)
                report.kills += 1


async def _measure(running: Cluster, report: UpstreamReport) -> None:
    """Count processes and memory each second."""
    begun = time.monotonic()
    while True:
        pids = family(running.process.pid)
        upstreams = {pid for pid in pids if is_upstream(pid)}
        report.seen |= upstreams
        report.processes.append(len(pids))
        used = sum(resident(pid) for pid in pids if pid not in upstreams)
        report.memory.append((time.monotonic() - begun, used / 2**20))
        await asyncio.sleep(1)


def left_behind(report: UpstreamReport) -> list[int]:
    """Return the process ids of upstreams that are still running."""
    return sorted(filter(is_upstream, report.seen))


def is_upstream(pid: int) -> bool:
    """Return whether a process is an upstream."""
    return UPSTREAM in _arguments(pid)


def growth(report: UpstreamReport) -> float:
    """Return the gateway's growth in MiB per ten minutes, from the second half of the run."""
    return slope(report.memory[len(report.memory) // 2 :]) * 600


def _arguments(pid: int) -> list[bytes]:
    """Return the command line of a process, or an empty list if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []
