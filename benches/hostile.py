"""`python -m benches.hostile`: crowds of misbehaving clients, and their effect on healthy ones. Prints a table for
documents.

A healthy client calls a tool on one connection and is measured three times: alone, beside as many well-behaved clients,
and beside the crowd. The server has one core, and the crowd the other one. The healthy client shares that core with the
crowd. As root, it has priority, as if it were on a separate machine. Otherwise, its times include the crowd's use of
the core. A better nice value isn't enough: Linux lets a running thread finish its slice, more than a millisecond on two
cores, before it runs the one that wakes up. Effects that are counted instead of timed (each such connection is closed,
a flood leaves nothing behind) are in the tests.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from benches.processes import LOAD_CORE, ROOT, Running, free_port, raise_file_limit, start
from benches.targets import RUN
from benches.wire import COMMON, INITIALIZE, KINDS, First

KEY = "the-key-of-the-healthy-client"
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from benches.servers.ours import add
from millstream import Server, auth

mcp = Server("hostile", auth=[auth.keys({key!r}), auth.jwt(
    issuer="https://issuer.example", audience="https://bench.example/mcp", jwks="http://127.0.0.1:{port}/keys")])
mcp.tool(add)
"""
KIND = KINDS["call-2026"]
T = TypeVar("T")


def call_until_told(port: int) -> None:
    """Call a tool on one connection, at most a hundred times per second, until standard input ends. Print the duration
    of each call. Runs in a separate process, because a crowd keeps its own event loop busy.
    """
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as peer:
        while not stop.wait(0.01):
            body = KIND.body.replace("@", str(len(took))).encode()
            head = f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n{KIND.head}authorization: Bearer {KEY}\r\n"
            begun = time.perf_counter()
            peer.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            told = b""
            while not told.endswith(b"}}"):
                piece = peer.recv(65536)
                assert piece, told
                told += piece
            took.append(time.perf_counter() - begun)
            assert told.startswith(b"HTTP/1.1 200"), told
    print(json.dumps(took))


@contextlib.asynccontextmanager
async def calling(port: int) -> AsyncIterator[list[float]]:
    """Run a healthy client inside the block. Afterward, the list contains the durations of its calls, in
    milliseconds."""
    command = [sys.executable, "-m", "benches.hostile", "--healthy", str(port)]
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
    took: list[float] = []
    try:
        yield took
    finally:
        said, _ = await client.communicate(b"")
        took += [each * 1000 for each in json.loads(said)]


async def healthy(port: int, seconds: float) -> float:
    """Return the 99th percentile of calls within some seconds, in milliseconds."""
    async with calling(port) as took:
        await asyncio.sleep(seconds)
    return p99(took)


def p99(took: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(took, n=100)[98]


async def slow(port: int, count: int, begin: bytes, drop: bytes, seconds: float) -> list[float]:
    """Open connections that send a little every second. Return the seconds after which the server closed each."""

    async def one() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.monotonic()
        writer.write(begin)
        closed = asyncio.ensure_future(reader.read(65536))
        while time.monotonic() - begun < seconds and not closed.done():
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(asyncio.shield(closed), 1.0)
            with contextlib.suppress(ConnectionError):
                writer.write(drop)
        if not closed.done():
            closed.cancel()
            writer.transport.abort()
            return seconds
        writer.transport.abort()
        return time.monotonic() - begun

    return await asyncio.gather(*(one() for _ in range(count)))


async def polite(port: int, count: int, seconds: float) -> None:
    """Open as many well-behaved connections. Each sends a small request every second, and reads the response."""

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            writer.write(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            await asyncio.sleep(1.0)
        writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(count)))


async def sessions(port: int, count: int) -> None:
    """Send handshakes without any later request."""
    head = f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n{COMMON}authorization: Bearer {KEY}\r\n"
    data = f"{head}content-length: {len(INITIALIZE)}\r\n\r\n".encode() + INITIALIZE

    async def some(share: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(share):
            writer.write(data)
            told = await reader.readuntil(b"\r\n\r\n")
            assert b"mcp-session-id" in told.lower(), told
            length = next(line for line in told.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()

    await asyncio.gather(*(some(count // 20) for _ in range(20)))


def bad_token() -> str:
    """Return a token signed with an unknown key."""
    head = urlsafe_b64encode(json.dumps({"alg": "ES256", "typ": "at+jwt", "kid": f"{random.random()}"}).encode())
    claims = urlsafe_b64encode(b'{"iss":"https://issuer.example","aud":"https://bench.example/mcp","exp":9e9}')
    return b".".join(part.rstrip(b"=") for part in (head, claims, urlsafe_b64encode(os.urandom(64)))).decode()


async def strangers(port: int, rate: int, seconds: float, *, good: bool) -> int:
    """Open connections from many addresses at a rate per second, each with a bad token or a valid key. Return their
    number."""
    sent = 0
    tasks: set[asyncio.Task[None]] = set()

    async def one() -> None:
        token = bad_token()
        credential, expected = (KEY, (b"400",)) if good else (token, (b"401", b"429"))
        address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            writer.write(
                f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n{COMMON}authorization: Bearer {credential}\r\n"
                "content-length: 2\r\n\r\n{}".encode()
            )
            told = await reader.readuntil(b"\r\n\r\n")
            assert told[9:12] in expected, told
            writer.transport.abort()

    begun = time.monotonic()
    while (now := time.monotonic() - begun) < seconds:
        while sent < now * rate:
            task = asyncio.ensure_future(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)
    return sent


@asynccontextmanager
async def issuer() -> AsyncIterator[tuple[int, list[float]]]:
    """Run a key server, and record the times of requests."""
    asked: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(time.monotonic())
        body = b'{"keys":[]}'
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


@contextlib.contextmanager
def served(keys: int) -> Iterator[Running]:
    """Run our server with default settings, behind keys and tokens."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hostile.py"
        file.write_text(PROGRAM.format(root=str(ROOT), key=KEY, port=keys))
        port = free_port()
        command = [*RUN[:-1], str(file), "--port", str(port), "--log-level", "warning"]
        first = First("/mcp", f"{KIND.head}authorization: Bearer {KEY}\r\n", KIND.body.replace("@", "1").encode())
        server = start(command, {}, port, Path(folder) / "log", first=first)
        try:
            yield server
        finally:
            server.stop()


async def beside(
    server: Running, crowd: Callable[[], Awaitable[T]], good: Callable[[], Awaitable[object]], seconds: float
) -> tuple[T, list[float], float]:
    """Return the result of a crowd, the healthy client's p99 alone, beside a well-behaved crowd, and beside this one,
    and the processor seconds that the crowd cost the server.
    """
    felt = [await healthy(server.port, seconds)]
    async with calling(server.port) as took:
        await good()
    felt.append(p99(took))
    used = server.cpu()
    async with calling(server.port) as took:
        given = await crowd()
    felt.append(p99(took))
    return given, felt, server.cpu() - used


class Table:
    """The measurements, and whether each is within its bound."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.kept = True

    def add(self, what: str, figure: float, unit: str, most: float) -> None:
        """Add one figure."""
        kept = figure <= most
        self.kept = self.kept and kept
        self.rows.append(f"| {what} | {figure:,.1f} {unit} | {most:g} {unit} | {'kept' if kept else 'MISSED'} |")

    def add_healthy(self, felt: list[float], used: float) -> None:
        """Add the healthy client's times, and the cost of the crowd."""
        alone, beside, during = felt
        self.add(f"… p99 of a healthy client, which was {alone:.1f} ms alone", during / alone, "×", 2.0)
        self.add(f"… and {beside:.1f} ms beside as many good clients", during / beside, "×", 2.0)
        self.rows.append(f"| … processor time of the server, the healthy client's calls included | {used:.2f} s | | |")


async def slow_crowds(table: Table, server: Running, options: argparse.Namespace) -> None:
    """Measure headers and bodies that arrive slowly."""
    port = server.port
    half = b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    body = half + f"{COMMON}authorization: Bearer {KEY}\r\ncontent-length: 4000000\r\n\r\n".encode()
    for what, begin, drop, most in (("headers", half, b"x-more: 1\r\n", 15.0), ("bodies", body, b"{", 30.0)):

        def crowd(begin: bytes = begin, drop: bytes = drop, most: float = most) -> Awaitable[list[float]]:
            return slow(port, options.connections, begin, drop, 2 * most)

        def good() -> Awaitable[None]:
            return polite(port, options.connections, options.seconds)

        took, felt, used = await beside(server, crowd, good, options.seconds)
        told = f"{options.connections:,} connections with slow {what}: the last one is closed after"
        table.add(told, max(took), "s", most)
        table.add_healthy(felt, used)


async def run(options: argparse.Namespace) -> Table:
    """Run every crowd."""
    table = Table()
    async with issuer() as (keys, asked):
        with served(keys) as server:
            port = server.port
            await healthy(port, 1.0)
            await slow_crowds(table, server, options)
            await sessions(port, 2_000)
            held = server.memory()
            await sessions(port, options.sessions)
            grown = server.memory() - held
            table.add(f"{options.sessions:,} times initialize, and silence: memory grows by", grown, "MiB", 20.0)
            asked.clear()
            sent, felt, used = await beside(
                server,
                lambda: strangers(port, options.rate, 10.0, good=False),
                lambda: strangers(port, options.rate, 10.0, good=True),
                options.seconds,
            )
            table.add(f"{sent:,} bad tokens in 10 s: the issuer is asked for keys", len(asked), "times", 1)
            table.add_healthy(felt, used)
    return table


def main() -> int:
    """Run all crowds, and print the table. Return 1 if a bound was exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benches.hostile", description=__doc__)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--rate", type=int, default=1_000, help="bad tokens a second")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the healthy client alone")
    parser.add_argument("--healthy", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    if options.healthy:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        call_until_told(options.healthy)
        return 0
    raise_file_limit()
    table = asyncio.run(run(options))
    print("\n".join(["| crowd | figure | at most | |", "|---|---|---|---|", *table.rows]))
    return 0 if table.kept else 1


if __name__ == "__main__":
    sys.exit(main())
