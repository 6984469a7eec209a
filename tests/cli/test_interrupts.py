import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from agent_world import KEY, ScriptedModel, hangs, says
from millstream._cli import signals as ending
from patience import WAIT
from processes import TEST_PATH
from terminal_world import COMMAND

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")

SERVER = """
import json, os, signal, sys, time

mode = sys.argv[1]
if mode == "stubborn":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
OFFER = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
TOOL = {"name": "x", "description": "x" * 500_000, "inputSchema": {"type": "object"}}


def say(message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


for line in sys.stdin:
    asked = json.loads(line)
    more = OFFER if asked["method"] == "server/discover" else {"tools": [TOOL]}
    if asked["method"] == "tools/call":
        with open("stage", "w") as file:
            file.write(f"pid {os.getpid()} ")
        token = asked["params"].get("_meta", {}).get("progressToken")
        while mode == "progress":
            params = {"progressToken": token, "progress": 1}
            say({"method": "notifications/progress", "params": params})
            time.sleep(0.05)
    elif "id" in asked:
        say({"id": asked["id"], "result": {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **more}})
while mode == "stubborn":
    time.sleep(600)
"""
SLOW_NAME = """
import socket, sys, time

def slow(*given, **more):
    open("stage", "w").write("asked")
    time.sleep(600)

socket.getaddrinfo = slow
sys.argv[0] = "millstream"
from millstream._cli import main; main()
"""
BEFORE_THE_ANSWER = """
import asyncio, os, signal, sys, threading, time

call, begun = asyncio.BaseEventLoop.call_soon_threadsafe, []

def slow(loop, callback, *args, **more):
    if callback.__name__ == "begin":
        begun.append(callback)
        if len(begun) == 2:
            call(loop, time.sleep, 1)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return call(loop, callback, *args, **more)

asyncio.BaseEventLoop.call_soon_threadsafe = slow
sys.argv[0] = "millstream"
from millstream._cli import main; main()
"""
ENDS = {"Ctrl-C": 130, "SIGTERM": -signal.SIGTERM, "hangup": -signal.SIGHUP}
UGLY = ("Traceback", "Task was destroyed", "never awaited", "Exception ignored")


class AtTerminal:
    """A command on its own terminal."""

    def __init__(
        self, folder: Path, words: Sequence[str], *, read_by: str = "", start: Sequence[str] = COMMAND, **more: str
    ) -> None:
        """`read_by`: ``nobody`` for output into a pipe that gets full, ``us`` for output and errors into one."""
        self._folder = folder
        self.terminal, self.theirs = os.openpty()
        self.settings = termios.tcgetattr(self.theirs)
        self.pipe, into = os.pipe() if read_by else (-1, self.theirs)
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": TEST_PATH, **more}
        self.process = subprocess.Popen(
            [*start, *words], cwd=folder, env=environment, start_new_session=True, pass_fds=[self.theirs],
            stdin=self.theirs, stdout=into, stderr=into if read_by == "us" else self.theirs,
            preexec_fn=lambda: fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0),  # noqa: PLW1509  one system call
        )  # fmt: skip
        self.into = into if read_by == "nobody" else -1
        if read_by == "us":
            os.close(into)
        self.said = ""
        self._reading = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while (ready := select.select([self.terminal], [], [], 0.02)[0]) or self._reading:
            if ready:
                self.said += os.read(self.terminal, 65536).decode("utf-8", "replace")

    def stage(self) -> str:
        """Return the output of the command, and the notes of its server."""
        with suppress(OSError):
            return self.said + (self._folder / "stage").read_text()
        return self.said

    def until(self, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not there():
            assert time.monotonic() < deadline, self.stage()
            assert self.process.poll() is None, self.stage()
            time.sleep(0.02)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def end(self, how: str) -> None:
        """End the command with Ctrl-C or another signal."""
        if how == "Ctrl-C":
            self.type("\x03")
        elif how == "SIGTERM":
            self.process.terminate()
        else:
            self._stop_reading()
            os.close(self.terminal)
            os.close(self.theirs)
            self.terminal = self.theirs = -1

    def ended(self) -> int:
        """Return the exit status, after checking the output."""
        status = self.process.wait(WAIT)
        if self.theirs >= 0:
            assert termios.tcgetattr(self.theirs) == self.settings
        self._stop_reading()
        assert not any(each in self.said for each in UGLY), self.said
        return status

    def _stop_reading(self) -> None:
        self._reading = False
        self._reader.join()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._stop_reading()
        for each in (self.terminal, self.theirs, self.pipe, self.into):
            if each >= 0:
                os.close(each)


Start = Callable[..., AtTerminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts commands in a folder with `server.py`, which is also their home."""
    (tmp_path / "server.py").write_text(SERVER)
    opened: list[AtTerminal] = []

    def begin(*words: str, **more: str) -> AtTerminal:
        opened.append(AtTerminal(tmp_path, words, **more))  # type: ignore[arg-type]
        return opened[-1]

    yield begin
    for each in opened:
        each.close()


def server(mode: str) -> str:
    return f"{sys.executable} server.py {mode}"


def full(pipe: int) -> bool:
    """Return whether a pipe is full, so that writers block."""
    return not select.select([], [pipe], [], 0)[1]


def gone(pid: int) -> bool:
    """Return whether a process has ended, even if its parent hasn't waited for it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@pytest.mark.server
def test_ctrl_c_ends_every_command_that_waits_for_a_server(start: Start) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(WAIT)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    table = {
        "list": [], "call": ["x"], "read": ["x:y"], "prompt": ["x"], "info": [], "ping": [], "doctor": [], "tokens": [],
        "watch": [],
    }  # fmt: skip
    with listener:
        for command, more in table.items():
            running = start(command, url, *more)
            waiting, _ = listener.accept()
            with waiting:
                assert waiting.recv(1)
                running.end("Ctrl-C")
                assert running.ended() == 130
            if command != "doctor":
                assert running.said == "^C", command


@pytest.mark.server
@pytest.mark.parametrize("how", ["SIGTERM", "hangup"])
def test_unresponsive_server_ends_with_the_command(start: Start, how: str) -> None:
    running = start("call", server("stubborn"), "x")
    running.until(lambda: running.stage().endswith(" "))
    running.end(how)
    assert running.ended() == ENDS[how]
    assert gone(int(running.stage().split()[-1]))


@pytest.mark.server
@pytest.mark.parametrize("words", [("--json",), ()], ids=["json", "plain"])
def test_second_ctrl_c_ends_a_command_whose_pipe_is_full(start: Start, words: tuple[str, ...]) -> None:
    running = start("list", server("plain"), *words, read_by="nobody")
    running.until(lambda: full(running.into))
    running.end("Ctrl-C")
    running.until(lambda: running.said == "^C")
    running.end("Ctrl-C")
    assert running.ended() == 130


@pytest.mark.server
def test_ctrl_c_does_not_wait_for_dns(start: Start) -> None:
    running = start("list", "http://slow.example/mcp", start=[sys.executable, "-c", SLOW_NAME])  # type: ignore[arg-type]
    running.until(lambda: running.stage().endswith("asked"))
    running.end("Ctrl-C")
    assert running.ended() == 130


@pytest.mark.server
@pytest.mark.parametrize(("how", "status"), ENDS.items(), ids=ENDS)
def test_terminal_echo_is_restored_after_a_password(start: Start, how: str, status: int) -> None:
    running = start("users", "add", "ada")
    running.until(lambda: "Password:" in running.said)
    running.end(how)
    assert running.ended() == status


@pytest.mark.server
def test_call_ends_when_its_output_is_closed(start: Start) -> None:
    running = start("call", server("progress"), "x", read_by="us")
    assert os.read(running.pipe, 9) == b"progress "
    os.close(running.pipe)
    running.pipe = -1
    assert running.ended() == 0


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(hangs("Wait for it")) as api:
        yield api


def chat(start: Start, api: ScriptedModel, *words: str, **more: str) -> AtTerminal:
    said: Mapping[str, str] = {"API_URL": api.url, "API_KEY": KEY, "DEFAULT_MODEL": "m", "TERM": "xterm", **more}
    return start("chat", server("plain"), *words, **said)


@pytest.mark.server
@pytest.mark.parametrize("how", ["SIGTERM", "hangup"])
@pytest.mark.parametrize("answering", [False, True], ids=["at the prompt", "while the model answers"])
def test_chat_ends_with_its_terminal(start: Start, model: ScriptedModel, how: str, answering: bool) -> None:
    running = chat(start, model)
    running.until(lambda: "/help lists" in running.said)
    if answering:
        running.type("go\r")
        running.until(lambda: "Wait for it" in running.said)
    running.end(how)
    assert running.ended() == ENDS[how]
    assert running.said.count("\x1b[?25l") == running.said.count("\x1b[?25h") or how == "hangup"


@pytest.mark.server
def test_signal_ends_an_answer_that_has_not_begun(start: Start, model: ScriptedModel) -> None:
    begin = partial(start, start=[sys.executable, "-c", BEFORE_THE_ANSWER])  # type: ignore[call-arg]
    assert chat(begin, model, "-m", "go").ended() == ENDS["SIGTERM"]


@pytest.mark.server
@pytest.mark.parametrize("words", [("--json",), ()], ids=["json", "plain"])
def test_full_pipe_does_not_block_an_answer(start: Start, words: tuple[str, ...]) -> None:
    with ScriptedModel(says("word " * 50_000, pieces=500)) as api:
        running = chat(start, api, "-m", "go", *words, read_by="nobody")
        running.until(lambda: full(running.into))
        running.end("Ctrl-C")
        assert running.ended() == 130


def test_ignored_signals_stay_ignored_and_handlers_are_restored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ours = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        with ending.ending_in_order():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != ours[signal.SIGTERM]
        assert {each: signal.getsignal(each) for each in ours} == ours
    finally:
        signal.signal(signal.SIGHUP, before)
