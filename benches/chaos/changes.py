"""A gateway's file changes again and again while clients call and workers are killed.

Each version is visible in the prefix of an upstream, in the description of another one's tool, in the instructions, and
in what a set has. A version also has a key and a set of its own.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.chaos.run import PATIENCE, Cluster, cluster
from benches.wire import COMMON, META

REVISIONS = "2026-07-28", "2025-06-18"
PATHS = "/mcp", "/mcp/readers"
CALLERS = 12
PAUSE = 0.1
EVERY = 6.0
"""Seconds between two changes."""
KEYS_SECONDS = 2.0
"""Seconds until all workers use a file of keys."""
FORWARD_SECONDS = 1.0
"""Seconds after a worker's end in which another worker may still forward a call to it."""
MAIN, OTHER = "ms_main-key-of-the-run", "ms_key-of-version-%d"
_ENDED = "Session not found", "has ended its session with you"
"""Errors of a session here and of one at an upstream."""
START_SECONDS = 5.0
"""Seconds from a worker's first call to the log line that it's ready."""
_VERSION = re.compile(r"\bv(\d+)(?:_|\b)")


@dataclass
class ChangeReport:
    """The results of a run."""

    changes: Counter[str] = field(default_factory=Counter[str])
    calls: int = 0
    kills: list[float] = field(default_factory=list)
    """Times at which workers were killed."""
    restarts: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each rolling restart."""
    starts: list[float] = field(default_factory=list)
    """Times at which replacements of killed workers were ready, to which some callers move back."""
    killed: set[int] = field(default_factory=set)
    """Local ports of the clients' connections to workers that were killed."""
    lost: int = 0
    """Calls that ended because a worker was killed."""
    ended: int = 0
    """Calls that learned that their session had ended, because its worker did or its caller moved to a new one."""
    slowest: float = 0.0
    """Longest time until all workers used a version, without a kill, in seconds."""
    floor: int = 1
    """Version that all workers use."""
    newest: int = 1
    """Last version in the file."""
    losses: list[tuple[float, float, str]] = field(default_factory=list)
    """Lost sessions: the caller's last success, the time, and the error."""
    wrong: list[str] = field(default_factory=list)

    def judge_losses(self) -> None:
        """Report the lost sessions that no worker's end or start explains, now that all starts are known."""
        moves = [(at, at) for at in self.kills] + [(at - START_SECONDS, at) for at in self.starts] + self.restarts
        for since, at, text in self.losses:
            if any(since <= end and begin <= at for begin, end in moves):
                self.ended += 1
            else:
                self.wrong.append(text)

    def __str__(self) -> str:
        return (
            f"{self.calls} calls, {self.lost} lost in {len(self.kills)} killed workers, {self.ended} with a session "
            f"that had ended with its worker, {len(self.restarts)} restarts, changes {dict(self.changes)}, "
            f"without these at most {self.slowest:.1f} s until all workers used one, {len(self.wrong)} faults"
        )


class Http:
    """One keep-alive connection at a time, so one worker at a time."""

    def __init__(self, port: int) -> None:
        self.local = 0
        """Local port of the connection."""
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: str, path: str, key: str, body: str = "", more: str = "") -> tuple[int, str, bytes]:
        """Return the status, the head, and the body of a response."""
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            self.local = self._streams[1].get_extra_info("sockname")[1]
        reader, writer = self._streams
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\nauthorization: Bearer {key}\r\n{more}"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        async with asyncio.timeout(PATIENCE):
            found = (await reader.readuntil(b"\r\n\r\n")).decode()
            if "transfer-encoding: chunked" in found.lower():
                content = b""
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    content += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            else:
                length = re.search(r"(?i)content-length: (\d+)", found)
                content = await reader.readexactly(int(length[1]) if length else 0)
        if "connection: close" in found.lower():
            self.close()
        return int(found.split()[1]), found, content

    def close(self) -> None:
        """Break the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Caller:
    """Calls tools and lists them at one address, in one revision."""

    def __init__(self, port: int, revision: str, path: str, report: ChangeReport) -> None:
        self._http = Http(port)
        self._revision, self._path, self._report = revision, path, report
        self._session = ""
        self._since = 0.0
        """Start of the last call that succeeded in a session here and at the upstream."""
        self._seen = (0, 0)
        """Connection, and the newest version that it has shown."""

    async def run(self) -> None:
        """Call until canceled."""
        steps: tuple[Callable[[], Any], ...] = (self._call, self._list, self._call_own, self._list_and_call)
        for step in itertools.cycle(steps):
            begun = time.monotonic()
            try:
                await step()
                self._report.calls += 1
                self._since = begun if step == self._call_own else self._since
            except (OSError, EOFError, Refused) as exc:
                self._take(exc, begun)
            await asyncio.sleep(random.uniform(0.0, 2 * PAUSE))

    def _take(self, exc: Exception, begun: float) -> None:
        """Count a call that the end of a worker explains, or report a fault."""
        report, text = self._report, f"{self._revision} at {self._path}: {exc!r:.500}"
        if isinstance(exc, Refused) and any(each in str(exc) for each in _ENDED):
            report.losses.append((self._since, time.monotonic(), text))
            self._session = ""
        elif (self._http.local in report.killed and not isinstance(exc, Refused)) or any(
            begun <= at + FORWARD_SECONDS for at in report.kills
        ):
            report.lost += 1
        else:
            report.wrong.append(text)
        if not isinstance(exc, Refused):
            self._http.close()

    async def _ask(self, method: str, params: Mapping[str, Any], name: str = "") -> Any:
        """Return a result."""
        more, params = f"{COMMON}mcp-protocol-version: {self._revision}\r\n", dict(params)
        if self._revision == REVISIONS[0]:
            params["_meta"] = META
            more += f"mcp-method: {method}\r\n" + (f"mcp-name: {name}\r\n" if name else "")
        elif method != "initialize":
            if not self._session:
                await self._open_session()
            more += f"mcp-session-id: {self._session}\r\n"
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        status, head, content = await self._http.send("POST", self._path, MAIN, body, more)
        lines = [line[6:] for line in content.split(b"\n") if line.startswith(b"data: ")]
        try:
            message = json.loads((lines or [content])[-1] or b"{}")
        except ValueError:
            raise Refused(f"{method} {name}: {status} {content!r}") from None
        if status != 200 or "result" not in message or message["result"].get("isError"):
            raise Refused(f"{method} {name}: {status} {message}")
        if method == "initialize":
            self._session = re.findall(r"(?i)mcp-session-id: (\S+)", head)[0]
        return message["result"]

    async def _open_session(self) -> None:
        about = {"name": "chaos", "version": "1"}
        await self._ask("initialize", {"protocolVersion": self._revision, "capabilities": {}, "clientInfo": about})
        body = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"})
        more = f"{COMMON}mcp-protocol-version: {self._revision}\r\nmcp-session-id: {self._session}\r\n"
        await self._http.send("POST", self._path, MAIN, body, more)

    async def _call_own(self) -> None:
        """Call the upstream with a process for each caller, which stays on one worker."""
        await self._call("own_echo")

    async def _call(self, name: str = "steady_echo") -> None:
        text = str(random.random())
        result = await self._ask("tools/call", {"name": name, "arguments": {"text": text}}, name)
        if result["content"][0]["text"] != text:
            self._report.wrong.append(f"{name} gave {result}")

    async def _list(self) -> int:
        lowest = self._report.floor
        tools = (await self._ask("tools/list", {}))["tools"]
        found = {int(each) for tool in tools for each in _VERSION.findall(f"{tool['name']} {tool['description']}")}
        version, (local, seen) = max(found), self._seen
        if len(found) != 1 or version < lowest or (local == self._http.local and version < seen):
            self._report.wrong.append(
                f"{self._revision} at {self._path} listed version {found} after {max(lowest, seen)}"
            )
        self._seen = self._http.local, version
        return version

    async def _list_and_call(self) -> None:
        """Call the tool whose name contains the version. It may be gone, if the version is."""
        version = await self._list()
        try:
            await self._call(f"v{version}_echo")
        except Refused as exc:
            if version >= self._report.newest or "unknown tool" not in str(exc).lower():
                raise

    def close(self) -> None:
        """Break the connection."""
        self._http.close()


class Refused(Exception):
    """A response that isn't a result."""


def _file(folder: Path, store: str, number: int) -> str:
    command = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).with_name("upstream.py")), "steady"])
    upstream = f"command = {command}\nstart_timeout = {PATIENCE}\ntimeout = {PATIENCE}\n"
    return (
        f'instructions = "v{number}"\nstore = "{store}"\nserve = ["metrics"]\n'
        f'[settings]\nauth_keys = "{folder}/keys.json"\n'
        f'[upstreams.steady]\n{upstream}isolation = "shared"\n'
        f'[upstreams.steady.policy.tools.echo]\ndescription = "v{number}"\n'
        f"[upstreams.own]\n{upstream}"
        f'[upstreams.changing]\n{upstream}isolation = "shared"\nprefix = "v{number}"\n'
        f'[upstreams.changing.policy]\ndeny = ["{"again" if number % 2 else "none"}"]\n'
        f'[sets.readers]\nallow = ["steady_echo", "own_*", "v{number}_*"]\n'
        f'[sets.of-version-{number}]\nallow = ["steady_echo"]\n'
    )


async def change_files(
    folder: Path, report: ChangeReport, *, store: str, workers: int, minutes: float, kill_every: float = 60.0
) -> None:
    """Change a gateway's file every few seconds, and kill a worker now and then."""
    _write_keys(folder, 1)
    path = folder / "gateway.toml"
    _write(path, _file(folder, store, 1))
    async with cluster(folder / "changes.log", workers=workers, store=store, program=str(path)) as running:
        callers = [
            Caller(running.port, REVISIONS[number % 2], PATHS[number // 2 % 2], report) for number in range(CALLERS)
        ]
        tasks = [asyncio.create_task(each.run()) for each in callers]
        tasks.append(asyncio.create_task(_watch_starts(running, report)))
        try:
            end = time.monotonic() + minutes * 60
            kill_at = time.monotonic() + kill_every
            for number in itertools.count(2):
                if time.monotonic() >= end:
                    break
                begun = time.monotonic()
                kills = begun >= kill_at
                kill_at += kill_every if kills else 0.0
                await _change(running, path, _file(folder, store, number), number, report, kills=kills)
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - begun)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in callers:
                each.close()
            report.judge_losses()


async def _change(running: Cluster, path: Path, text: str, number: int, report: ChangeReport, *, kills: bool) -> None:
    """Write a version, and wait until each worker uses it."""
    ways = "rename", "write", "broken"
    way, begun = "restart" if number % 10 == 0 else ways[number % len(ways)], time.monotonic()
    if way == "broken":
        refusals = _count(running, "stays in force")
        _write(path, text.replace("[sets.readers]", "[sets.readers]\nalow = 1"))
        await _until(lambda: _count(running, "stays in force") > refusals)
        begun = time.monotonic()
    report.newest = number
    _write_keys(path.parent, number)
    _write(path, text, renames=way == "rename")
    if way == "restart":
        old = {*_workers(running)}
        running.process.send_signal(signal.SIGHUP)
        report.restarts.append((begun, math.inf))
        await _until(lambda: not old & {*_workers(running)})
        report.restarts[-1] = begun, time.monotonic()
    report.changes[way + (" and kill" if kills else "")] += 1
    if kills:
        await asyncio.sleep(random.uniform(0.0, 1.5))
        await _kill(running, report)
    try:
        async with asyncio.timeout(PATIENCE):
            while await _versions(running) != {(number, "")}:  # noqa: ASYNC110  other processes
                await asyncio.sleep(0.05)
            report.slowest = max(report.slowest, 0.0 if kills or way == "restart" else time.monotonic() - begun)
            report.floor = number
            await asyncio.sleep(2 * KEYS_SECONDS if kills else KEYS_SECONDS)
            for version, expected in ((number, {False}), (number - 1, {True})):
                found = await _ask_workers(running, f"/mcp/of-version-{version}", MAIN, "DELETE")
                if (missing := {status == 404 for status, _ in found}) != expected:
                    report.wrong.append(f"Set {version} after version {number} is missing: {missing}")
            for key, expected in ((number, {True}), (number - 1, {False})):
                if (accepted := await _accept(running, key)) != expected:
                    report.wrong.append(f"Key {key} after version {number}: {accepted}")
    except TimeoutError:
        report.wrong.append(f"Version {number} isn't in force everywhere: {await _versions(running)}")


async def _watch_starts(running: Cluster, report: ChangeReport) -> None:
    while True:
        if _count(running, ") is ready") > len(report.starts):
            report.starts.append(time.monotonic())
        await asyncio.sleep(0.1)


def _write_keys(folder: Path, number: int) -> None:
    """Write the key of the callers, and one that only this version has."""
    stored = [
        {"name": name, "hash": hashlib.sha256(key.encode()).hexdigest(), "created": 0.0, "scopes": scopes}
        for name, key, scopes in (("main", MAIN, ["millstream:watch"]), ("other", OTHER % number, []))
    ]
    _write(folder / "keys.json", json.dumps({"keys": stored}), renames=True)


def _write(path: Path, text: str, *, renames: bool = False) -> None:
    """Write a file, or put another one in its place."""
    new = path.with_name("new") if renames else path
    new.write_text(text, "utf-8")
    new.chmod(0o600)
    new.replace(path)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)


def _count(running: Cluster, text: str) -> int:
    return running.log.read_text("utf-8").count(text)


async def _ask_workers(running: Cluster, path: str, key: str, method: str = "GET") -> list[tuple[int, bytes]]:
    """Return the status and the body of responses on new connections, of all workers by chance."""
    found: list[tuple[int, bytes]] = []
    for _ in range(4 * running.count):
        http = Http(running.port)
        with contextlib.suppress(OSError, EOFError):
            status, _, content = await http.send(method, path, key)
            found.append((status, content))
        http.close()
    return found


async def _versions(running: Cluster) -> set[tuple[int, str]]:
    """Return the versions that workers use, and why the file's version isn't in force."""
    found = [json.loads(content)["configuration"] for _, content in await _ask_workers(running, "/health", MAIN)]
    ready = len(_workers(running)) == running.count
    return {(each["version"], each.get("refused", "")) for each in found} | (set() if ready else {(0, "")})


async def _accept(running: Cluster, number: int) -> set[bool]:
    """Return whether workers accept the key of a version, which may not read metrics."""
    return {b"requires a scope" in content for _, content in await _ask_workers(running, "/metrics", OTHER % number)}


def _workers(running: Cluster) -> list[int]:
    """Return the process ids of the workers, without the processes of their upstreams."""
    pid = running.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


async def _kill(running: Cluster, report: ChangeReport) -> None:
    """Send SIGKILL to a worker."""
    victim = random.choice(_workers(running))
    report.killed |= _peers(victim)
    report.kills.append(time.monotonic())
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)


def _peers(pid: int) -> set[int]:
    """Return the ports at the other end of a process's connections."""
    sockets = set[str]()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            sockets |= {str(each.readlink()).removeprefix("socket:[").rstrip("]")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text("ascii").splitlines()[1:]]
    return {int(row[2].partition(":")[2], 16) for row in rows if row[9] in sockets}
