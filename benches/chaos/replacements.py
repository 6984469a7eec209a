"""Upstreams of every kind are restarted, replaced by other revisions, stopped, and lose the gateway's registration.

Each is called through a gateway in its own process, and without an account through a relay as well.
"""

import asyncio
import contextlib
import itertools
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benches.chaos.accounts import AuthorizationServer, ForgottenClient, connect_account, run_authorization_server
from benches.chaos.gateway import TIMEOUT
from benches.chaos.replaceable import __file__ as program
from benches.chaos.run import PATIENCE, cluster
from benches.processes import ROOT, family, free_port
from millstream import Client, Server
from millstream.client import ClientError
from millstream.gateway import OpenApi

KEY = "key-of-the-chaos-run-0123456789"
KINDS = ("http", "sse", "ws", "stdio", "api")
REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
FAULTS = ("restart", "upgrade", "rollback", "stop", "forget")
FAILED_CALLS = 1
"""Maximum failed calls of a client once an upstream can be reached again. A lost account costs another one: after the
person has connected, a client that had a session there reads that its state is lost."""
UPTIME_SECONDS = 6.0
"""Seconds that a command runs before it's killed. One that exits more often restarts later each time."""
USABLE_SECONDS = 10.0
"""Maximum seconds from then until a call succeeds."""
STOPPED_SECONDS = 8.0
"""Seconds for which a process is stopped; a command's process is replaced before."""
PAUSE = 0.2
"""Seconds between two calls."""


class Target(Struct):
    """One upstream."""

    kind: str
    folder: str
    account: bool
    port: int = msgspec.field(default_factory=free_port)

    @property
    def name(self) -> str:
        """Name of the upstream."""
        return f"{self.kind}{'_account' if self.account else ''}"

    def join(self, mcp: Server, **options: Any) -> None:
        """Add the upstream to a gateway."""
        url = f"http://127.0.0.1:{self.port}"
        if self.kind == "api":
            answer = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
            text = {"name": "text", "in": "query", "schema": {"type": "string"}}
            paths = {"/echo": {"get": {"operationId": "echo", "parameters": [text], "responses": answer}}}
            about = OpenApi(document={"openapi": "3.1.0", "info": {}, "paths": paths}, base_url=url)
            mcp.upstream(self.name, None, openapi=about, **options)
            return
        target: Any = f"{url}/mcp"
        if self.kind == "ws":
            target = f"ws://127.0.0.1:{self.port}/ws"
        elif self.kind == "sse":
            target = {"mcpServers": {self.name: {"type": "sse", "url": f"{url}/sse"}}}
        elif self.kind == "stdio":
            target = [sys.executable, "-I", "-S", program, f"{self.folder}/{self.name}"]
        mcp.upstream(self.name, target, **options)


@dataclass
class ReplacementReport:
    """What came out."""

    faults: Counter[str] = field(default_factory=Counter[str])
    """Faults by kind of upstream."""
    failures: Counter[str] = field(default_factory=Counter[str])
    """Failed calls of the clients after faults."""
    slowest: dict[str, float] = field(default_factory=dict[str, float])
    """Maximum seconds until a call succeeded, by kind of upstream."""
    wrong: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        lines = [
            f"  {name}: {count} faults, {self.failures[name]} failed calls after them, usable within "
            f"{self.slowest.get(name, math.inf):.1f} s"
            for name, count in sorted(self.faults.items())
        ]
        return "\n".join([*lines, f"{self.faults.total()} faults of upstreams, {len(self.wrong)} with problems"])


class Replaceable:
    """An upstream's process, and the clients that call it."""

    def __init__(self, target: Target, folder: Path, report: ReplacementReport) -> None:
        self.target = target
        self.revision = REVISIONS[-1]
        self.issuer: AuthorizationServer | None = None
        self.tokens = folder / f"{target.name}.tokens"
        self._clients: dict[str, tuple[Client, str]] = {}
        """What a client is connected to -> the client, and the name of the tool there."""
        self._base = ""
        """URL of the gateway."""
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._report = report

    async def connect(self, stack: AsyncExitStack, base: str, revision: str) -> None:
        """Connect the account and the clients, until the stack is closed."""
        self._base = base
        await self._connect_account()
        headers = {"Authorization": f"Bearer {KEY}"}
        client = Client(f"{base}/mcp", revision=revision, headers=headers, timeout=PATIENCE)
        self._clients["gateway"] = await stack.enter_async_context(client), f"{self.target.name}_echo"
        if not self.target.account:
            relay = Server("relay")
            self.target.join(relay, prefix="", timeout=TIMEOUT)
            self._clients["relay"] = await stack.enter_async_context(Client(relay, timeout=PATIENCE)), "echo"
        async with asyncio.timeout(PATIENCE):
            for name in self._clients:
                while await self._call(name):  # noqa: ASYNC110
                    await asyncio.sleep(PAUSE)

    async def _connect_account(self) -> None:
        if self.issuer is None:
            return
        with contextlib.suppress(ForgottenClient):  # the person sees an error at the authorization server, and retries
            await connect_account(self._base, KEY, self.target.name, self.issuer, PATIENCE)
            return
        await connect_account(self._base, KEY, self.target.name, self.issuer, PATIENCE)

    async def start(self) -> None:
        """Start the process. A command is started by the gateways."""
        if self.target.kind == "stdio":
            (self._folder / self.target.name).write_text(self.revision, "utf-8")
            return
        command = [sys.executable, "-I", "-S", program, str(self.target.port), self.revision]
        command += [str(self.tokens)] if self.target.account else []
        self._process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.target.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    def pids(self) -> list[int]:
        """Return the ids of the upstream's processes."""
        if self.target.kind != "stdio":
            return [] if self._process is None else [self._process.pid]
        last = f"{self._folder}/{self.target.name}".encode()
        found = []
        for pid in family(os.getpid()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(b"\0" + last):
                    found.append(pid)
        return found

    async def kill(self) -> None:
        """Kill the processes."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the processes."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def harm(self, fault: str) -> None:
        """Cause a fault, and check that each client can call again soon after it."""
        before = self.revision
        busy = random.random() < 0.5  # whether clients call while the upstream is down
        place = REVISIONS.index(before)
        match fault:
            case "restart" | "upgrade" | "rollback":
                others = {"upgrade": REVISIONS[place + 1 :], "rollback": REVISIONS[:place]}.get(fault) or (before,)
                self.revision = random.choice(others)
                if self.target.kind == "stdio":
                    await self._call_meanwhile(UPTIME_SECONDS, busy=busy)
                    await self.start()
                    await self.kill()
                else:
                    await self.kill()
                    await self._call_meanwhile(random.uniform(0.0, 4.0), busy=busy)
                    await self.start()
            case "stop":
                self.signal(signal.SIGSTOP)
                await self._call_meanwhile(STOPPED_SECONDS, busy=busy)
                if random.random() < 0.5:
                    await self.kill()
                    await self.start()
                self.signal(signal.SIGCONT)
            case _ if self.issuer is not None:
                self.issuer.forget()
        label = f"{self.target.name}: {fault} ({before} to {self.revision}{', called meanwhile' if busy else ''})"
        self._report.faults[self.target.name] += 1
        await asyncio.gather(*(self._recover(label, name) for name in self._clients))

    async def _call_meanwhile(self, seconds: float, *, busy: bool) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if busy:
                await asyncio.gather(*(self._call(name) for name in self._clients))
            await asyncio.sleep(PAUSE)

    async def _call(self, name: str) -> str:
        """Call the tool, and return why it failed, or an empty string."""
        client, tool = self._clients[name]
        text = str(random.random())
        try:
            result = await client.call(tool, text=text, raise_on_error=False)
        except ClientError as exc:
            return f"{type(exc).__name__}: {exc}"[:300]
        return "" if not result.is_error and text in result.text else f"{result.text!r:.300}"

    async def _recover(self, label: str, name: str) -> None:
        """Call until a call succeeds. If the account was lost, a person connects it after a call has said so."""
        begun, failures, allowed = time.monotonic(), list[str](), FAILED_CALLS
        while failure := await self._call(name):
            failures.append(failure)
            if "/connections" in failure:
                allowed = FAILED_CALLS + 1
                await self._connect_account()
            if time.monotonic() - begun > PATIENCE:
                self._report.wrong.append(f"{label}, {name}: never usable again: {failures[-3:]}")
                return
            await asyncio.sleep(PAUSE)
        seconds = time.monotonic() - begun
        self._report.failures[self.target.name] += len(failures)
        self._report.slowest[self.target.name] = max(self._report.slowest.get(self.target.name, 0.0), seconds)
        if len(failures) > allowed or seconds > USABLE_SECONDS:
            self._report.wrong.append(f"{label}, {name}: {len(failures)} failed calls, {seconds:.1f} s: {failures}")


async def replace_upstreams(
    folder: Path, report: ReplacementReport, *, store: str, workers: int, until: Callable[[], bool]
) -> None:
    """Cause faults in upstreams of every kind until it's enough, each at least once.

    Args:
        folder: For the log, the tokens, and the revisions of commands.
        report: Takes what came out.
        store: URL of the gateway's store.
        workers: Number of the gateway's workers.
        until: Returns whether it's enough.
    """
    targets = [Target(kind, str(folder), account=account) for kind in KINDS for account in (False, True)]
    targets = [each for each in targets if each.kind != "stdio" or not each.account]
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(_run(target, folder, report)) for target in targets]
        environment = {"CHAOS_TARGETS": msgspec.json.encode(targets).decode(), "PYTHONPATH": str(ROOT)}
        log, gateway = folder / "replacing.log", "replacing_gateway.py"
        running = await stack.enter_async_context(
            cluster(log, workers=workers, store=store, environment=environment, program=gateway)
        )
        base = f"http://127.0.0.1:{running.port}"
        for each, revision in zip(upstreams, itertools.cycle(REVISIONS), strict=False):
            await each.connect(stack, base, revision)
        async with asyncio.TaskGroup() as tasks:
            for each in upstreams:
                tasks.create_task(_harm(each, until))


@asynccontextmanager
async def _run(target: Target, folder: Path, report: ReplacementReport) -> AsyncIterator[Replaceable]:
    """Run an upstream inside the block, with an authorization server if it has accounts."""
    upstream = Replaceable(target, folder, report)
    async with AsyncExitStack() as stack:
        if target.account:
            upstream.issuer = await stack.enter_async_context(run_authorization_server(upstream.tokens))
        stack.push_async_callback(upstream.kill)
        await upstream.start()
        yield upstream


async def _harm(upstream: Replaceable, until: Callable[[], bool]) -> None:
    """Cause one fault after the other, in a new order each time."""
    faults = FAULTS if upstream.target.account else FAULTS[:-1]
    while True:
        for fault in random.sample(faults, len(faults)):
            await upstream.harm(fault)
        if until():
            return
