"""Servers whose standard error is a pipe that no process reads: a stalled log driver, or a host that forgets it."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cases import for_each
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server

CALLS = 100
"""The lines of this many calls fill a pipe three times."""
NOISY = """
import logging

from millstream import Server

mcp = Server("noisy")


@mcp.tool
async def noisy() -> str:
    logging.getLogger("app").warning("x" * 2000)
    return "said"


@mcp.tool
def noisy_thread() -> str:
    logging.getLogger("app").warning("x" * 2000)
    return "said"
"""
COMMAND = [sys.executable, "-c", "from millstream._cli import main; main()"]


def call(name: str, number: int) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name}}
    return json.dumps(message).encode() + b"\n"


def post(port: int, body: bytes) -> bytes:
    """Return the reply to a message."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)) as connection:
        connection.request("POST", "/mcp", body, {"content-type": "application/json"})
        return connection.getresponse().read()


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A file with tools that log."""
    file = tmp_path / "noisy.py"
    file.write_text(NOISY)
    return file


@contextmanager
def unread_pipe(path: Path) -> Iterator[int]:
    """Create a named pipe whose reader doesn't read."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@for_each("options", [(), ("--workers", "2")])
def test_unread_log_does_not_block_calls_or_shutdown(options: tuple[str, ...], noisy: Path) -> None:
    port, log = free_port(), noisy.with_name(f"log{len(options)}")
    with (
        unread_pipe(log),
        run_server(run_command(str(noisy), port, *options), port, log, MILLSTREAM_ACCESS_LOG="true") as process,
    ):
        for number in range(CALLS):
            assert b"said" in post(port, call(("noisy", "noisy_thread")[number % 2], number))
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0


def test_unread_log_does_not_block_a_second_ctrl_c(noisy: Path) -> None:
    port, log = free_port(), noisy.with_name("log")
    with unread_pipe(log), run_server(run_command(str(noisy), port), port, log) as process:
        for number in range(CALLS):
            assert b"said" in post(port, call("noisy", number))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) in (0, 130)


def test_unread_log_does_not_block_stdio_calls(noisy: Path) -> None:
    with unread_pipe(noisy.with_name("log")) as log:
        done = subprocess.run(
            [*COMMAND, "run", str(noisy), "--transport", "stdio"],
            input=b"".join(call("noisy", number) for number in range(CALLS)),
            stdout=subprocess.PIPE, stderr=log, timeout=WAIT, check=False,
        )  # fmt: skip
    assert done.stdout.count(b"said") == CALLS
    assert done.returncode == 0
