"""Load over stdio: a fixed number of calls, sixteen in flight. Every response is examined afterward.

The lines are created before the clock starts, and the responses are decoded after it stops. In between, the driver only
reads, counts newlines, and writes the next lines. `servers/bare_stdio.py` shows the driver's own limit.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from benches.processes import ROOT, SERVER_CORE, BenchError, cpu_seconds, pinned
from benches.wire import INITIALIZE, INITIALIZED, call_lines

IN_FLIGHT = 16
FIRST = 1_000_000
WARM = 500
MOST = 1_000_000


class Sum(Struct):
    result: int


class Result(Struct, rename="camel"):
    structured_content: Sum


class Reply(Struct):
    id: int
    result: Result


@dataclass(frozen=True)
class StdioLoad:
    """One timed exchange. The fields are those of `http_load.Load`."""

    rate: float
    cpu_us: float
    busy: float


decode = msgspec.json.Decoder(Reply).decode


@contextmanager
def talking(command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, int, int]]:
    """Run a server process on its core inside the block, and yield its stdin, stdout, and id."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            pinned(SERVER_CORE, command),
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdin.fileno(), process.stdout.fileno(), process.pid
        except (BenchError, BrokenPipeError) as exc:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
            raise BenchError(f"{exc}: {' '.join(said[-3:]) or 'it said nothing'}") from exc
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def initialize(into: int, out: int) -> None:
    """Send `initialize`, and read the response."""
    os.write(into, INITIALIZE + b"\n")
    _read_line(out)
    os.write(into, INITIALIZED + b"\n")


def drive(command: list[str], environment: dict[str, str], seconds: float, *, handshake: bool) -> StdioLoad:
    """Start the server, warm it up, measure for about this many seconds, and stop it.

    Raises:
        BenchError: an answer was wrong or missing.
    """
    with talking(command, environment) as (into, out, pid):
        if handshake:
            initialize(into, out)
        spent = _exchange(into, out, FIRST, WARM)
        count = min(MOST, max(WARM, int(WARM / spent * seconds)))
        cpu = cpu_seconds(pid)
        spent = _exchange(into, out, FIRST + WARM, count)
        cpu = cpu_seconds(pid) - cpu
        return StdioLoad(count / spent, cpu / count * 1e6, cpu / spent * 100)


def _read_line(out: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        chunk = os.read(out, 65536)
        if not chunk:
            raise BenchError("the server ended before its first answer")
        data += chunk
    return data


def _exchange(into: int, out: int, first: int, count: int) -> float:
    """Send `count` calls with sixteen in flight, and return the seconds that they took."""
    lines = call_lines(first, count)
    answers: list[bytes] = []
    sent, received = min(IN_FLIGHT, count), 0
    begun = time.perf_counter()
    os.write(into, b"".join(lines[:sent]))
    while received < count:
        chunk = os.read(out, 65536)
        if not chunk:
            raise BenchError("the server ended in the middle of the load")
        answers.append(chunk)
        ended = chunk.count(b"\n")
        received += ended
        if ended and sent < count:
            os.write(into, b"".join(lines[sent : sent + ended]))
            sent += ended
    spent = time.perf_counter() - begun
    replies = [decode(line) for line in b"".join(answers).splitlines()]
    if {reply.id for reply in replies} != set(range(first, first + count)) or len(replies) != count:
        raise BenchError("answers are missing or repeated")
    if any(reply.result.structured_content.result != reply.id + 1 for reply in replies):
        raise BenchError("a sum is wrong")
    return spent
