"""Server processes of a benchmark: started on one core, measured, ended.

The server has core 0 for itself, the load generator core 1. A server has started when it responds to a call.
"""

import http.client
import os
import resource
import socket
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benches.wire import COMMON, FIRST_CALL, INITIALIZE, INITIALIZED, First

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE = "0"
LOAD_CORE = "1"
START_SECONDS = 180.0
_IDLE_SECONDS, _IDLE_CPU = 1.0, 0.05
"""A server is idle if it uses no more than this processor time in this many seconds."""


class BenchError(Exception):
    """A measurement can't be made. The message gives the reason."""


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Running:
    """A server process under measurement."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float
    """Seconds from the start of the process to its first HTTP answer."""
    idle: float = 0.0
    sessions: dict[str, list[str]] = field(default_factory=dict)
    """Ids of initialized sessions, by revision."""

    def memory(self) -> float:
        """Resident memory of the process and its children, in MiB."""
        return sum(resident(pid) for pid in family(self.process.pid)) / 2**20

    def cpu(self) -> float:
        return cpu_seconds(self.process.pid)

    def request(self, body: bytes, head: str = COMMON) -> http.client.HTTPResponse:
        """Send one POST on a new connection, and read the response."""
        return _post(self.port, First("/mcp", head, body))

    def open_sessions(self, count: int, revision: str = "2025-11-25") -> list[str]:
        """Return ids of initialized sessions, created once."""
        opened = self.sessions.setdefault(revision, [])
        initialize = First("/mcp", COMMON, INITIALIZE.replace(b"2025-11-25", revision.encode()))
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            while len(opened) < count:
                session = _exchange(connection, initialize).getheader("mcp-session-id")
                if not session:
                    raise BenchError("initialize gave no session id")
                head = f"{COMMON}mcp-protocol-version: {revision}\r\nmcp-session-id: {session}\r\n"
                _exchange(connection, First("/mcp", head, INITIALIZED))
                opened.append(session)
        return opened[:count]

    def settle(self) -> None:
        """Wait until the server is idle. Otherwise, workers that are still starting would count toward the cost of
        responses."""
        end = time.monotonic() + START_SECONDS
        used = -1.0
        while time.monotonic() < end and self.cpu() - used > _IDLE_CPU:
            used = self.cpu()
            time.sleep(_IDLE_SECONDS)

    def stop(self) -> None:
        """End the process with SIGTERM, then SIGKILL."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


def start(
    command: list[str],
    environment: dict[str, str],
    port: int,
    log: Path,
    *,
    first: First = FIRST_CALL,
    core: str = SERVER_CORE,
) -> Running:
    """Start a server on its core (or on every one, if `core` is empty) and wait for its first answer."""
    begun = time.perf_counter()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            pinned(core, command) if core else command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    while process.poll() is None and time.perf_counter() - begun < START_SECONDS:
        try:
            status = _post(port, first).status
        except OSError:
            time.sleep(0.002)
        else:
            server = Running(process, port, log, time.perf_counter() - begun)
            if status // 100 != 2:
                server.stop()
                raise BenchError(f"answers {first.path} with status {status}")
            server.idle = server.memory()
            return server
    if process.poll() is None:
        process.kill()
        process.wait(5)
    raise BenchError(f"did not start: {(log.read_text('utf-8', 'replace').strip() or 'no answer').splitlines()[-1]}")


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and its children."""
    return sum(_clock(one) for one in family(pid))


def pinned(core: str, command: list[str]) -> list[str]:
    """Return the command, pinned to one core."""
    return ["taskset", "--cpu-list", core, *command]


def raise_file_limit() -> None:
    """Raise the limit on open files to the maximum, for this process and those that it starts, because each connection
    needs a file at both ends."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _post(port: int, request: First) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        return _exchange(connection, request)
    except http.client.HTTPException as exc:
        raise ConnectionError(str(exc)) from exc
    finally:
        connection.close()


def _exchange(connection: http.client.HTTPConnection, request: First) -> http.client.HTTPResponse:
    headers = dict(line.split(": ", 1) for line in request.head.strip().split("\r\n"))
    connection.request("POST", request.path, request.body, headers)
    response = connection.getresponse()
    response.read()
    return response


def resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _clock(pid: int) -> float:
    """Return the processor seconds of all threads of a process, to the nanosecond. /proc counts only hundredths of a
    second."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the value of clock_getcpuclockid(3) on Linux
    except OSError:
        return 0.0


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        children = []
    return [pid, *(relative for child in children for relative in family(int(child)))]
