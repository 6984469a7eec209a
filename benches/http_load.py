"""Load over HTTP with wrk: first a pass that examines every body, then a timed one.

Examining bodies in wrk's Lua costs wrk about as much as the request costs a bare loop, so the timed pass counts only
statuses and bytes: every response must be 2xx, with as many bytes as in the examined pass. When wrk stops, every
connection may have read a part of one more response. These bytes are counted, but the response isn't.
"""

import gzip
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benches.processes import LOAD_CORE, ROOT, BenchError, Running, pinned
from benches.wire import Kind

CONNECTIONS = 64
EXAMINED_SECONDS = 1
UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
PROBE = 1000001
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}
VARYING = 32.0
"""Bytes by which replies may differ if they're compressed or name a session or an incident."""
SLACK = 2.0
"""Bytes by which responses may differ, because a counter or a length may have one more digit."""


@dataclass(frozen=True)
class Load:
    """One timed pass."""

    rate: float
    """Responses per second."""
    p50: float
    """Milliseconds."""
    p99: float
    cpu_us: float
    """Processor time of the server for one response, in microseconds. It's steadier than the rate on a shared
    machine."""
    busy: float
    """The server's share of its core, in percent. If it's well below 100, the load generator or the machine was the
    limit."""


def drive(server: Running, kind: Kind, seconds: float, connections: int = CONNECTIONS) -> Load:
    """Examine, then measure.

    Raises:
        BenchError: an answer was wrong, missing or of another size than the examined ones.
    """
    # A slow server replies to all connections at nearly the same time, so more of them need longer.
    examined = _wrk(server, kind, max(EXAMINED_SECONDS, connections // 50), connections, check=True)
    _check_right(examined)
    cpu, begun = server.cpu(), time.perf_counter()
    # Requests of several sizes, which are slow, are examined in both passes.
    timed = _wrk(server, kind, seconds, connections, check=bool(kind.more))
    cpu, spent = server.cpu() - cpu, time.perf_counter() - begun
    if "Non-2xx" in timed or "Socket errors" in timed:
        raise BenchError(f"failed answers: {timed.strip().splitlines()[-4:]}")
    if kind.more:
        _check_right(timed)
        return _load(timed, cpu, spent)
    usual, now = bytes_per_answer(examined, connections), bytes_per_answer(timed, connections)
    if not agree(usual, now):
        raise BenchError(f"answers of {now[0]:.0f} to {now[1]:.0f} bytes, right are {usual[0]:.0f} to {usual[1]:.0f}")
    return _load(timed, cpu, spent)


def quick(
    server: Running, kind: Kind, seconds: float, connections: int = CONNECTIONS, *, measured: Running | None = None
) -> Load:
    """Examine one reply, then measure; for clients that accept compression, whose replies wrk can't examine.

    Args:
        server: the server under load.
        kind: the requests.
        seconds: length of the load, in seconds.
        connections: number of open connections.
        measured: the server whose processor time counts, if it's another one.

    Raises:
        BenchError: a reply was wrong, missing, or of another size than the first one.
    """
    size = probe(server, kind)
    measured = measured or server
    cpu, begun = measured.cpu(), time.perf_counter()
    timed = _wrk(server, kind, seconds, connections, check=False)
    cpu, spent = measured.cpu() - cpu, time.perf_counter() - begun
    if "Non-2xx" in timed or "Socket errors" in timed:
        raise BenchError(f"failed replies: {timed.strip().splitlines()[-4:]}")
    least, most = bytes_per_answer(timed, connections)
    if not least - VARYING <= size <= most + VARYING:
        raise BenchError(f"replies of {least:.0f} to {most:.0f} bytes, the first one had {size}")
    return _load(timed, cpu, spent)


def apart(
    server: Running, kind: Kind, seconds: float, connections: int = CONNECTIONS, *, measured: Running | None = None
) -> Load:
    """Do as `quick`, with the head and the body of each request in two segments, as `benches.segments` sends them."""
    size, measured = probe(server, kind), measured or server
    command = [sys.executable, "-m", "benches.segments", str(server.port), str(seconds), str(connections), str(size)]
    cpu = measured.cpu()
    done = subprocess.run(
        pinned(LOAD_CORE, command), input=fill(server, kind), capture_output=True, timeout=seconds + 30, check=False
    )
    cpu = measured.cpu() - cpu
    if done.returncode != 0:
        raise BenchError(f"segments: {done.stderr.decode().strip().splitlines()[-1]}")
    answers = int(done.stdout)
    return Load(answers / seconds, 0.0, 0.0, cpu / answers * 1e6, cpu / seconds * 100)


def fill(server: Running, kind: Kind, number: int = PROBE) -> bytes:
    """Return one request with the values of a run."""
    head, _, body = kind.requests().replace("@", str(number)).partition("\r\n\r\n")
    sessions = server.open_sessions(kind.sessions, kind.revision)
    values = {"host": f"127.0.0.1:{server.port}", "length": str(len(body.encode()))}
    values |= {"session": sessions[0]} if sessions else {}
    for name, value in values.items():
        head = head.replace(f"{{{name}}}", value)
    return f"{head}\r\n\r\n{body}".encode()


def repeat(server: Running, kind: Kind, count: int) -> None:
    """Send a request repeatedly on one connection, before a load.

    Raises:
        BenchError: the server refused one.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for number in range(PROBE, PROBE + count):
            connection.sendall(fill(server, kind, number))
            response = http.client.HTTPResponse(connection)
            response.begin()
            text = DECODERS[response.getheader("content-encoding", "identity")](response.read()).decode()
            if response.status != 200 or kind.reply not in text:
                raise BenchError(f"refused before the load: {text[:300]}")


def probe(server: Running, kind: Kind) -> int:
    """Send one request, check its reply, and return the reply's size in bytes.

    Raises:
        BenchError: the reply is wrong.
    """
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(fill(server, kind))
        received = Counted(connection)
        response = http.client.HTTPResponse(received)  # type: ignore[arg-type]
        response.begin()
        data = response.read()
    coding = response.getheader("content-encoding", "identity")
    text = DECODERS[coding](data).decode()
    right = response.status == 202 and not text
    if response.status == 200 and kind.reply in text:
        # A reply is JSON, or an event stream whose last event is the response.
        *_, message = [text] if text.startswith("{") else ["", *re.findall(r"(?m)^data: ?(\{.*)$", text)]
        right = json.loads(message or "{}").get("id") == PROBE or "@" not in kind.body
    if not right:
        raise BenchError(f"the reply has status {response.status}, and is not as expected: {text[:300]}")
    return received.size


class Counted:
    """The bytes of a connection, counted as they're read."""

    def __init__(self, connection: socket.socket) -> None:
        self._file = connection.makefile("rb")
        self.size = 0

    def makefile(self, _mode: str) -> "Counted":
        return self

    def _count(self, data: bytes) -> bytes:
        self.size += len(data)
        return data

    def readline(self, most: int = -1) -> bytes:
        return self._count(self._file.readline(most))

    def read(self, most: int = -1) -> bytes:
        return self._count(self._file.read(most))

    def close(self) -> None:
        self._file.close()

    def flush(self) -> None:
        """Called by HTTPResponse."""


def _check_right(text: str) -> None:
    counts = re.search(r"CHECKED right=(\d+) wrong=(\d+)", text)
    if counts is None or int(counts[1]) == 0 or int(counts[2]) > 0:
        sample = re.search(r"SAMPLE (.*)", text)
        raise BenchError(f"wrong answers: {sample[1] if sample else text.strip().splitlines()[-1]}")


def _load(timed: str, cpu: float, spent: float) -> Load:
    rate = _number(r"Requests/sec: +([\d.]+)", timed)
    answers = _number(r"(\d+) requests in ", timed)
    return Load(rate, _latency(50, timed), _latency(99, timed), cpu / answers * 1e6, cpu / spent * 100)


def _wrk(server: Running, kind: Kind, seconds: float, connections: int, *, check: bool) -> str:
    sessions = server.open_sessions(kind.sessions, kind.revision)
    with tempfile.TemporaryDirectory() as folder:
        files = {"BENCH_REQUESTS": kind.requests(), "BENCH_SESSIONS": "\n".join(sessions)}
        for name, text in files.items():
            (Path(folder) / name).write_text(text, "utf-8", newline="")
        paths = {name: str(Path(folder) / name) for name in files}
        return _run_wrk(server, kind, seconds, connections, paths, check=check)


def _run_wrk(
    server: Running, kind: Kind, seconds: float, connections: int, paths: dict[str, str], *, check: bool
) -> str:
    environment = os.environ | {"BENCH_HOST": f"127.0.0.1:{server.port}"} | paths
    if check:
        environment["BENCH_EXPECT"] = kind.expect
    if kind.pause:
        environment["BENCH_PAUSE"] = str(kind.pause)
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "5s"]
    script = str(ROOT / "benches" / "lua" / "load.lua")
    command = pinned(LOAD_CORE, ["wrk", *options, "-s", script, f"http://127.0.0.1:{server.port}/mcp"])
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + 30, check=False)
    if done.returncode != 0:
        raise BenchError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"wrk printed no {pattern}")
    return float(found[1])


def _latency(percent: int, text: str) -> float:
    found = re.search(rf"^ +{percent}% +([\d.]+)(us|ms|s|m) *$", text, re.MULTILINE)
    if found is None:
        raise BenchError("wrk printed no latencies")
    return float(found[1]) * UNITS[found[2]]


def agree(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether the responses of both passes may have had the same size."""
    return one[0] <= other[1] + SLACK and other[0] <= one[1] + SLACK


def bytes_per_answer(text: str, connections: int = CONNECTIONS) -> tuple[float, float]:
    """Return the minimum and maximum size that a response may have had.

    Raises:
        BenchError: there were none, or no totals.
    """
    found = re.search(r"^TOTALS answers=(\d+) bytes=(\d+)$", text, re.MULTILINE)
    if found is None or found[1] == "0":
        raise BenchError("wrk printed no totals")
    answers, read = int(found[1]), int(found[2])
    return read / (answers + connections), read / answers
