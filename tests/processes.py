"""Servers in a process of their own, for tests whose subject is a real socket.

A server counts as started when its port accepts a connection; it is ended by its own process object, with SIGTERM,
then SIGKILL. What it printed is in the error when it does not start.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 5.0


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def millstream(target: str, port: int, *options: str) -> list[str]:
    """The command of `millstream run`, which serves through the lane."""
    start = "from millstream.cli import main; main()"
    return [sys.executable, "-c", start, "run", target, "--port", str(port), *options]


def uvicorn(target: str, port: int, *options: str) -> list[str]:
    """The command of plain uvicorn, which serves `MODULE:OBJECT` as ASGI."""
    return [sys.executable, "-m", "uvicorn", target, "--port", str(port), "--log-level", "warning", *options]


@contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, its output in the file `log`."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        wait_for_port(process, port, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(SECONDS)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the port answers; fail when the process ends or the time is over."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")
