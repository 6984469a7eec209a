"""Two machines of one gateway behind a balancer, while their workers are killed, frozen, drained, and restarted.

A command counts for each person. Every request of a client comes to the next machine. So each result has to be the one
after the last, whichever machine received the call, and a count that begins anew has to be announced once.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benches.chaos.run import PATIENCE, Cluster, cluster, ready
from benches.chaos.speakers import target
from benches.processes import free_port
from millstream.client import (
    Client,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    ServerError,
    ToolFailed,
)

SECRET_OF_ALL = "the-secret-of-the-machines-of-this-run"  # noqa: S105
PERSONS = [f"person{number}" for number in range(12)]
WAYS = (
    ("http", "2026-07-28"),
    ("http", "2025-11-25"),
    ("http", "2025-06-18"),
    ("sse", "2024-11-05"),
    ("ws", "2026-07-28"),
    ("ws", "2025-11-25"),
)
CALLS = 15
"""Average calls of one client before the next one replaces it."""
PAUSE = 0.1
FROZEN = (1.0, 12.0)
"""Seconds for which a worker is frozen, which may be longer than its lease."""
CALM = 5.0
"""Seconds after the end of a fault in which a call can still fail because of it, beside the longest freeze."""
LOST = "lost its state"
AGAIN = "try again", "may have taken effect", "not reached", "is starting", "was interrupted", "start the request again"


def key_of(person: str) -> str:
    """Return a person's key."""
    return f"ms_the-key-of-{person}-in-this-run"


@dataclass
class MachinesReport:
    """The results of a run."""

    calls: int = 0
    again: Counter[str] = field(default_factory=Counter[str])
    """Calls that ended with a retryable error."""
    lost: Counter[str] = field(default_factory=Counter[str])
    """Persons who were told that their state was lost."""
    harms: Counter[str] = field(default_factory=Counter[str])
    last_harm: float = 0.0
    """Time at which the last fault ended."""
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.calls} calls with a result, to try again {dict(self.again)}, {self.lost.total()} losses of state "
            f"told, faults {dict(self.harms)}, {len(self.wrong)} wrong"
        )


class Person:
    """Someone's calls, one after the other, by clients of every kind."""

    def __init__(self, name: str, port: int, report: MachinesReport, number: int) -> None:
        self.name = name
        self._way, self._revision = WAYS[number % len(WAYS)]
        self._port = port
        self._report = report
        self._count = 0
        """The last result."""
        self._unknown = 0
        """Number of calls since the last loss whose outcome isn't known. They can also take effect later."""
        self._seen = deque[str](maxlen=8)
        """The last outcomes."""
        self.over = False

    async def run(self) -> None:
        """Call until it's over."""
        headers = {"authorization": f"Bearer {key_of(self.name)}"}
        while not self.over:
            try:
                async with Client(
                    target(self._way, self._port),
                    revision=self._revision,
                    headers=headers,
                    timeout=PATIENCE,
                    elicit=lambda _: {"go": True},
                ) as client:
                    while not self.over and random.random() > 1 / CALLS:
                        await self._call(client, random.choice(("count", "count", "ask")))
                        await asyncio.sleep(random.uniform(0.0, PAUSE))
            except ClientError as exc:
                self._failed("connect", exc)
            await asyncio.sleep(random.uniform(0.0, PAUSE))

    async def _call(self, client: Client, tool: str) -> None:
        try:
            found = int((await client.call(tool)).text)
        except ClientError as exc:
            self._unknown += 1
            self._failed(tool, exc)
            return
        late = found - self._count - 1
        if not 0 <= late <= self._unknown:
            self._wrong(f"{tool} gave {found} after {self._count} and {self._unknown} unknown outcomes")
        self._count, self._unknown = found, self._unknown - late
        self._seen.append(str(found))
        self._report.calls += 1

    def _failed(self, what: str, exc: ClientError) -> None:
        text = str(exc)
        self._seen.append(f"{what}: {exc!r}")
        if LOST in text:
            self._count = self._unknown = 0
            self._report.lost[self.name] += 1
        elif (
            isinstance(exc, ConnectionLost | ConnectFailed | RequestTimeout)
            or (isinstance(exc, ServerError | ToolFailed) and any(each in text.lower() for each in AGAIN))
        ) and time.monotonic() - self._report.last_harm < FROZEN[1] + CALM:
            self._report.again[type(exc).__name__] += 1
        else:
            self._wrong(f"{what} ended in {exc!r}")

    def _wrong(self, text: str) -> None:
        self._report.wrong.append(f"{self.name} ({self._way}, {self._revision}): {text}; before: {list(self._seen)}")


@asynccontextmanager
async def balancer(ports: list[int]) -> AsyncIterator[int]:
    """Send each request to the next machine that accepts its connection, and give the port."""
    turns = iter(range(10**12))
    tasks = set[asyncio.Task[None]]()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade" not in head.lower():
                head = head.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
            for _ in ports:
                try:
                    back = await asyncio.open_connection("127.0.0.1", ports[next(turns) % len(ports)])
                except OSError:
                    continue
                back[1].write(head)
                await asyncio.gather(carry(reader, back[1]), carry(back[0], writer))
                return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def torment_machines(
    folder: Path, report: MachinesReport, *, store: str, workers: int, until: Callable[[], bool], every: float
) -> None:
    """Call through the balancer while the machines suffer, until it's enough."""
    async with AsyncExitStack() as stack:
        machines = [
            await stack.enter_async_context(
                cluster(
                    folder / f"machine{number}.log",
                    workers=workers,
                    store=store,
                    program="counting_gateway.py",
                    environment={
                        "MILLSTREAM_SECRET_KEY": SECRET_OF_ALL,
                        "MILLSTREAM_PEER": f"127.0.0.1:{free_port()}",
                    },
                )
            )
            for number in (1, 2)
        ]
        port = await stack.enter_async_context(balancer([each.port for each in machines]))
        persons = [Person(name, port, report, number) for number, name in enumerate(PERSONS)]
        tasks = [asyncio.create_task(each.run()) for each in persons]
        harm = asyncio.create_task(_harm(machines, report, every))
        try:
            while not until():
                await asyncio.sleep(0.2)
                for task in (harm, *tasks):
                    if task.done():
                        task.result()
        finally:
            harm.cancel()
            await asyncio.gather(harm, return_exceptions=True)
            for each in persons:
                each.over = True
            async with asyncio.timeout(2 * PATIENCE):
                await asyncio.gather(*tasks)
        costly = report.harms.total()
        report.wrong += [
            f"{name} was told {count} losses after {costly} faults"
            for name, count in report.lost.items()
            if count > costly
        ]


async def _harm(machines: list[Cluster], report: MachinesReport, every: float) -> None:
    harms = {"killed": _kill, "frozen": _freeze, "replaced": _replace, "reread": _reread}
    while True:
        await asyncio.sleep(every)
        kind, machine = random.choice(list(harms)), random.choice(machines)
        report.harms[kind] += 1
        report.last_harm = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            await harms[kind](machine)
        await ready(machine, machine.count)
        report.last_harm = time.monotonic()


async def _kill(machine: Cluster) -> None:
    os.kill(random.choice(machine.workers()), signal.SIGKILL)


async def _freeze(machine: Cluster) -> None:
    pid = random.choice(machine.workers())
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(random.uniform(*FROZEN))
    finally:
        os.kill(pid, signal.SIGCONT)


async def _replace(machine: Cluster) -> None:
    """Let the parent replace one worker after it has finished its requests."""
    os.kill(random.choice(machine.workers()), signal.SIGTERM)


async def _reread(machine: Cluster) -> None:
    """Restart all workers, one after the other."""
    os.kill(machine.process.pid, signal.SIGHUP)
