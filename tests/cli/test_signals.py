import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from patience import WAIT
from processes import free_port, run_command, run_server
from workers_world import until

pytestmark = pytest.mark.server

FILE = """
import asyncio, atexit, os, sys, time
from contextlib import asynccontextmanager
from millstream import Server


def say(text):
    print(text, file=sys.stderr, flush=True)


@asynccontextmanager
async def lifespan(server):
    try:
        yield
    finally:
        say("closed in order")


mcp = Server("slow", lifespan=lifespan)
atexit.register(say, "left by the door")


@mcp.tool
async def waits(seconds: float = 0, mark: str = "") -> str:
    say("called")
    await asyncio.sleep(seconds)
    while mark and not os.path.exists(mark):
        await asyncio.sleep(0.01)
    return "done"


@mcp.tool
async def refuses() -> str:
    say("called")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            say("no")


@mcp.route("/refuses")
async def page(request) -> str:
    return await refuses()


@mcp.tool
async def threads() -> str:
    await asyncio.to_thread(lambda: (say("called"), time.sleep(600)))
    return "never"


@mcp.tool
async def generates() -> str:
    async def never_ends():
        try:
            yield
        finally:
            await refuses()

    kept.append(never_ends())
    await anext(kept[-1])
    say("called")
    return "done"


kept = []


@mcp.tool(thread=False)
def blocks() -> str:
    say("called")
    time.sleep(600)
    return "never"


@mcp.tool(thread=False)
def interrupts() -> str:
    raise KeyboardInterrupt


@mcp.tool
def interrupts_in_a_thread() -> str:
    raise KeyboardInterrupt


@mcp.tool
async def interrupts_later() -> str:
    await asyncio.sleep(0.001)
    raise KeyboardInterrupt
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
COMMAND = [sys.executable, "-c", "from millstream._cli import main; main()", "run"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server whose calls may take ten minutes, with a drain timeout that allows it."""
    monkeypatch.setenv("MILLSTREAM_DRAIN_TIMEOUT", "600")
    path = tmp_path / "slow.py"
    path.write_text(FILE)
    return path


def call(tool: str, number: int = 1, **arguments: Any) -> bytes:
    params = {"name": tool, "arguments": arguments}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode() + b"\n"


class Serving:
    """`millstream run` over HTTP, with one running call."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.answers: list[bytes] = []
        self._log = log
        self.port = port

    def ask(self, tool: str, *, path: str = "/mcp", **arguments: Any) -> None:
        """Call a tool, or get a path, in a thread. Return once it runs."""
        body = call(tool, **arguments) if path == "/mcp" else None
        threading.Thread(target=self._ask, args=(body, path), daemon=True).start()
        until(lambda: "called" in self.log)

    def _ask(self, body: bytes | None, path: str = "/mcp") -> None:
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, {"content-type": "application/json"})
            ) as reply:
                self.answers.append(reply.read())
        except OSError:
            pass  # cut off

    @property
    def log(self) -> str:
        """Return the server's output so far."""
        return self._log.read_text("utf-8")


@contextmanager
def http(file: Path) -> Iterator[Serving]:
    port, log = free_port(), file.with_name("log")
    with run_server(run_command(str(file), port), port, log) as process:
        try:
            yield Serving(process, port, log)
        finally:
            process.kill()


@contextmanager
def stdio(file: Path, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    """Start `millstream run` over stdio, with its log in a file."""
    with file.with_name("log").open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, str(file), "--transport", "stdio"], stdin=stdin, stdout=subprocess.PIPE, stderr=log
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_finish_calls_and_exit_with_0(file: Path, number: int) -> None:
    goes_on = file.with_name("goes on")
    with http(file) as server:
        server.ask("waits", mark=str(goes_on))
        server.process.send_signal(number)
        until(lambda: "Stopping" in server.log)
        goes_on.touch()
        assert server.process.wait(WAIT) == 0
        until(lambda: bool(server.answers))
        assert b"done" in server.answers[0]
        assert "1 call has up to 600 s to finish" in server.log
        assert server.log.index("closed in order") < server.log.index("left by the door")


def test_second_ctrl_c_ends_the_server_immediately(file: Path) -> None:
    with http(file) as server:
        server.ask("waits", seconds=600)
        server.process.send_signal(signal.SIGINT)
        until(lambda: "Press Ctrl-C again" in server.log)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT) == 130
        assert "Stopping immediately after a second Ctrl-C: 1 call is cut off" in server.log
        assert "closed in order" in server.log
        assert "Traceback" not in server.log


def test_second_ctrl_c_ends_a_blocked_server(file: Path) -> None:
    with http(file) as server:
        server.ask("blocks")
        deadline = time.monotonic() + WAIT
        while server.process.poll() is None and time.monotonic() < deadline:
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # two signals at once are one
        assert server.process.poll() == 130
        assert "Stopping immediately" in server.log


HELD = "code that is still running: refuses (slow.py:"


@pytest.mark.parametrize(
    ("tool", "path", "told"),
    [
        ("refuses", "/mcp", HELD),
        ("refuses", "/refuses", HELD),
        ("threads", "/mcp", "code that is still running: a thread or a generator"),
        ("generates", "/mcp", "code that is still running: a thread or a generator"),
    ],
)
def test_functions_that_ignore_cancellation_are_reported_at_exit(
    file: Path, tool: str, path: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_DRAIN_TIMEOUT", "0.1")
    with http(file) as server:
        server.ask(tool, path=path)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT) == 0
        assert server.log.count(told) == 1
        assert server.log.index("closed in order") < server.log.index(told)


def test_stdio_calls_that_ignore_cancellation_are_reported_at_exit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_DRAIN_TIMEOUT", "0.1")
    with stdio(file) as process:
        assert process.stdin is not None
        process.stdin.write(call("refuses"))
        process.stdin.close()
        assert process.wait(WAIT) == 0
    log = file.with_name("log").read_text("utf-8")
    assert log.count(HELD) == 1
    assert log.index("closed in order") < log.index(HELD)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_finish_stdio_calls(file: Path, number: int) -> None:
    log, goes_on = file.with_name("log"), file.with_name("goes on")
    with stdio(file) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(call("waits", mark=str(goes_on)))
        process.stdin.flush()
        until(lambda: "called" in log.read_text())
        process.send_signal(number)
        until(lambda: "Stopping" in log.read_text())
        goes_on.touch()
        assert b"done" in process.stdout.readline()
        assert process.wait(WAIT) == 0
    assert log.read_text().index("closed in order") < log.read_text().index("left by the door")


def test_second_ctrl_c_ends_a_stdio_server(file: Path) -> None:
    log = file.with_name("log")
    with stdio(file) as process:
        assert process.stdin is not None
        process.stdin.write(call("waits", seconds=600))
        process.stdin.flush()
        until(lambda: "called" in log.read_text())
        process.send_signal(signal.SIGINT)
        until(lambda: "Press Ctrl-C again" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 130
    assert "closed in order" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_stopping_server_lists_pending_calls_and_streams(file: Path) -> None:
    with http(file) as server, socket.create_connection(("127.0.0.1", server.port), WAIT) as stream:
        stream.sendall(b"GET /sse HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")
        assert b"event-stream" in stream.recv(4096)
        server.ask("waits", mark=str(file.with_name("goes on")))
        server.process.send_signal(signal.SIGINT)
        until(lambda: "Stopping" in server.log)
        file.with_name("goes on").touch()
        assert server.process.wait(WAIT) == 0
        assert "Stopping: 1 call has up to 600 s to finish, then 1 stream ends. Press Ctrl-C again" in server.log


@pytest.mark.parametrize("closed", [False, True], ids=["empty", "closed"])
def test_stdio_server_without_input_exits(file: Path, closed: bool) -> None:
    command = f'exec "$@" {"<&-" if closed else "</dev/null"}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *COMMAND, str(file), "--transport", "stdio"],
        capture_output=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"closed in order" in done.stderr
    assert b"Traceback" not in done.stderr


def test_stdio_server_works_without_stderr(file: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, str(file), "--transport", "stdio"],
        input=call("waits", 1, seconds=0), stdout=subprocess.PIPE, timeout=WAIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert b'"id":1' in done.stdout


def test_stdio_server_answers_an_unterminated_last_line(file: Path) -> None:
    given = file.with_name("given")
    given.write_bytes(call("waits", 1, seconds=0) + call("waits", 2, seconds=0).rstrip())
    for shell in ('exec "$@" <given', 'cat given | exec "$@"'):
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *COMMAND, str(file), "--transport", "stdio"],
            capture_output=True, timeout=WAIT, check=False, cwd=file.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {json.loads(line)["id"] for line in done.stdout.splitlines()} == {1, 2}


def test_keyboard_interrupt_in_a_tool_fails_only_its_call(file: Path) -> None:
    tools = ("interrupts", "interrupts_in_a_thread", "interrupts_later")
    with http(file) as server:
        for tool in tools:
            server._ask(call(tool))
        server._ask(call("waits", seconds=0))
        *failed, done = map(json.loads, server.answers)
        assert [reply["result"]["isError"] for reply in failed] == [True] * len(tools)
        assert done["result"]["content"][0]["text"] == "done"
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT) == 0


@pytest.mark.skipif(os.name != "posix", reason="nohup is of POSIX")
def test_server_under_nohup_outlives_its_terminal(file: Path) -> None:
    port, log = free_port(), file.with_name("log")
    with run_server(["nohup", *run_command(str(file), port)], port, log) as process:
        server = Serving(process, port, log)
        process.send_signal(signal.SIGHUP)
        server._ask(call("waits", seconds=0))
        assert len(server.answers) == 1
