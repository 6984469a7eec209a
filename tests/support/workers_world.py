"""Run a program with several workers, and clients that count failures."""

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import WAIT
from processes import free_port, kill_with_parent, redis_timed_out, run_command, terminate_after

PROGRAM = """
import asyncio, os, signal
from contextlib import asynccontextmanager
from pathlib import Path
from millstream import Server

HERE = Path(__file__).parent
VERSION = 1


@asynccontextmanager
async def lifespan(server):
    if (HERE / "broken").exists():
        raise RuntimeError("the disk is full")
    yield


mcp = Server("shop", lifespan=lifespan)


@mcp.tool
async def who() -> int:
    return os.getpid()


@mcp.tool
async def version() -> int:
    return VERSION


@mcp.tool
async def slow(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@mcp.tool
async def until_told() -> str:
    with (HERE / "called").open("ab") as called:
        called.write(b".")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    return "done"


@mcp.tool(thread=False)
def stands_still() -> str:
    os.kill(os.getpid(), signal.SIGSTOP)
    return "on"
"""

LAUNCHER = """
import os, sys
passed = int(sys.argv[1])
if passed != 3:
    os.dup2(passed, 3)
os.set_inheritable(3, True)
if sys.argv[2] == "listen":
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""
"""Does what systemd does: the socket is descriptor 3, and two variables say so to this process alone."""


def until(condition: Callable[[], bool], what: str = "") -> None:
    """Poll until a condition is true. `what` explains a timeout."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


async def until_running(folder: Path, calls: int = 1) -> None:
    """Wait until `calls` calls of `until_told` are running."""
    called = folder / "called"
    await until_async(lambda: called.exists() and called.stat().st_size >= calls)


async def until_async(condition: Callable[[], bool], what: str = "") -> None:
    """Poll like `until`, without blocking the event loop."""
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


class Program:
    """A program with workers, and its log."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log
        self.folder = log.parent

    @property
    def log(self) -> str:
        """Output of all its processes so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The parsed log lines, without one that's still being written."""
        return [json.loads(line) for line in self.log.rpartition("\n")[0].splitlines() if line.startswith("{")]

    def count_lines(self, text: str) -> int:
        """Count log lines whose message contains `text`."""
        return sum(text in record["message"] for record in self.records)

    @property
    def pids(self) -> list[int]:
        """Pids of the workers, as logged at the start or after the last restart."""
        return list(next(record["workers"] for record in self.records if "workers" in record))

    def wait_for_line(self, text: str, times: int = 1) -> None:
        """Wait until a message was logged `times` times."""
        until(lambda: self.count_lines(text) >= times or self.process.poll() is not None, f"{text!r} in {self.log}")
        assert self.count_lines(text) >= times, self.log

    def ended_at_once(self) -> bool:
        """Wait until the program serves or ends. Return True if it ended."""
        until(lambda: bool(self.count_lines("is serving on")) or self.process.poll() is not None, self.log)
        return not self.count_lines("is serving on")

    def children(self) -> list[int]:
        """Return the pids of the parent's child processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@contextmanager
def start_program(command: list[str], port: int, log: Path, *, ready: bool = True, **options: Any) -> Iterator[Program]:
    """Run a program for the length of the block. If `ready`, wait for all its workers first."""
    options = {"stdin": subprocess.DEVNULL, **options}

    def start() -> Program:
        with log.open("wb") as sink:
            process = subprocess.Popen(kill_with_parent(command), stdout=sink, stderr=sink, **options)
        return Program(process, port, log)

    served = start()
    while ready and served.ended_at_once() and redis_timed_out(log):
        served = start()
    with terminate_after(served.process):
        if ready:
            served.wait_for_line("is serving on")
        yield served


@contextmanager
def run_workers(folder: Path, count: int, *options: str, program: str = PROGRAM, **more: Any) -> Iterator[Program]:
    """Run `millstream run shop.py --workers COUNT`."""
    file = folder / "shop.py"
    if not file.exists():
        file.write_text(program)
    port = free_port()
    command = run_command(str(file), port, "--workers", str(count), *options)
    with start_program(command, port, folder / "log", **more) as served:
        yield served


def call(tool: str, **arguments: Any) -> bytes:
    """Encode a 2025-11-25 tool call, which needs no session."""
    params = {"name": tool, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


class Reply:
    """A complete reply."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def closes(self) -> bool:
        """True if the server closes the connection after this reply."""
        return self.headers.get("connection") == "close"

    @property
    def value(self) -> Any:
        """The tool's return value."""
        text = json.loads(self.body)["result"]["content"][0]["text"]
        return int(text) if text.isdigit() else text


class Client:
    """A client with one keep-alive connection that never retries a request: each failure is an error.

    After ``connection: close``, or if the server closed the idle connection, the next request opens a new one, as the
    HTTP specification demands.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self.connections = 0
        self.announced_closes = 0
        """Number of connections that ended with ``connection: close``."""

    async def request(self, body: bytes = b"", path: str = "/mcp", headers: Mapping[str, str] | None = None) -> Reply:
        """Send a POST with a body, or a GET without one."""
        if self._writer is None or self.ended:
            await self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self.connections += 1
        method = "POST" if body else "GET"
        fields = {
            "host": f"127.0.0.1:{self._port}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "content-length": str(len(body)),
            **(headers or {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        reply = await asyncio.wait_for(self._read(), WAIT)
        if reply.closes:
            self.announced_closes += 1
            await self.close()
        return reply

    async def _read(self) -> Reply:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ", 2)[1])
        headers = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r$", head, re.MULTILINE)}
        if "content-length" in headers:
            return Reply(status, headers, await self._reader.readexactly(int(headers["content-length"])))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return Reply(status, headers, body)

    @property
    def ended(self) -> bool:
        """Return whether the server closed the connection, even if the event loop hasn't noticed yet."""
        if self._writer is None:
            return False
        if self._reader.at_eof() or self._writer.is_closing():
            return self._reader.at_eof()
        unseen = select.poll()
        unseen.register(self._writer.get_extra_info("socket"), select.POLLIN)
        return [event for _, event in unseen.poll(0)] == [select.POLLIN]  # a reset would set more flags

    async def close(self) -> None:
        """Close the connection, if there is one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Load:
    """Keep-alive clients that send calls until `stop`, with counts of replies and failures."""

    def __init__(self, port: int, clients: int, bodies: list[bytes]) -> None:
        self.clients = [Client(port) for _ in range(clients)]
        self.replies = 0
        self.failures: Counter[str] = Counter()
        self._bodies = bodies
        self._going = True
        self._tasks = [asyncio.create_task(self._go(client, number)) for number, client in enumerate(self.clients)]

    async def _go(self, client: Client, number: int) -> None:
        while self._going:
            number += 1
            try:
                reply = await client.request(self._bodies[number % len(self._bodies)])
                if reply.status != 200 or b'"result"' not in reply.body:
                    self.failures[f"{reply.status} {reply.body!r}"] += 1
            except (TimeoutError, OSError, EOFError) as exc:
                self.failures[repr(exc)] += 1
                await client.close()
            self.replies += 1

    async def stop(self) -> None:
        """Wait until each client finishes its call."""
        self._going = False
        await asyncio.gather(*self._tasks)
        for client in self.clients:
            await client.close()


async def pids_by_new_connections(port: int, count: int, tool: str = "who") -> Counter[int]:
    """Count which workers answer successive new connections."""
    found: Counter[int] = Counter()
    for _ in range(count):
        client = Client(port)
        found[(await client.request(call(tool))).value] += 1
        await client.close()
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)


async def wait_until_refused(port: int) -> None:
    """Wait until the port refuses connections."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue
        writer.close()
