"""A server that isn't ready stops at once, whatever its lifespan does."""

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from cases import for_each
from millstream import Server
from patience import WAIT
from processes import free_port, run_command

pytestmark = pytest.mark.server

FILE = """
import asyncio, os, sys, time
from contextlib import asynccontextmanager
from millstream import Server


def say(text):
    print(text, os.getpid(), file=sys.stderr, flush=True)


async def wait_for(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


@asynccontextmanager
async def lifespan(server):
    say("starting")
    try:
        {start}
        yield
    finally:
        {stop}
        say("cleaned up")


mcp = Server("slow", lifespan=lifespan)
"""
NEVER = "await asyncio.Event().wait()"
BLOCKED = "time.sleep(600)"
IN_A_THREAD = "await asyncio.to_thread(time.sleep, 600)"


def until(happened: Callable[[], bool], log: Path) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Starting:
    """A server whose lifespan has begun."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.path = log
        until(lambda: "starting" in self.log or process.poll() is not None, log)

    @property
    def log(self) -> str:
        return self.path.read_text("utf-8")

    @property
    def serving(self) -> list[int]:
        """Return the ids of the processes whose lifespan has begun."""
        return [int(each) for each in re.findall(r"^starting (\d+)$", self.log, re.MULTILINE)]

    def end(self, *signals: int) -> int:
        for number in signals:
            self.process.send_signal(number)
        status = self.process.wait(WAIT)
        until(lambda: not any(map(is_running, self.serving)), self.path)
        return status


@contextmanager
def begin(
    folder: Path, start: str, *options: str, stop: str = "pass", drain: str = "600", stdio: bool = False
) -> Iterator[Starting]:
    file, log = folder / "slow.py", folder / "log"
    file.write_text(FILE.format(start=start, stop=stop))
    command = [*run_command(str(file), free_port())[:-2]] if stdio else run_command(str(file), free_port(), *options)
    variables = {**os.environ, "MILLSTREAM_DRAIN_TIMEOUT": drain, "MILLSTREAM_SECRET_KEY": "k" * 40}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *(["--transport", "stdio"] if stdio else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=output,
            env=variables,
            start_new_session=True,  # a closed terminal is another reason to stop
        ) as process,
    ):
        server = Starting(process, log)
        try:
            yield server
        finally:
            process.kill()
            for pid in server.serving:
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)


STATUS = {signal.SIGTERM: 0, signal.SIGINT: 130, signal.SIGHUP: 0}


@pytest.mark.parametrize("how", ["one process", "two workers", "stdio"])
def test_first_signal_cancels_a_lifespan_that_is_starting(tmp_path: Path, how: str) -> None:
    options = ["--workers", "2"] if how == "two workers" else []
    for number, status in STATUS.items():
        if (how, number) == ("two workers", signal.SIGHUP):
            continue  # restarts the workers
        folder = tmp_path / number.name
        folder.mkdir()
        with begin(folder, NEVER, *options, stop="await asyncio.sleep(0)", stdio=how == "stdio") as server:
            assert server.end(number) == status
            assert f"cleaned up {server.serving[0]}" in server.log
            assert "left behind" not in server.log
            assert "Traceback" not in server.log


@pytest.mark.parametrize("how", ["one process", "two workers", "stdio"])
def test_a_lifespan_that_blocks_is_left_behind(tmp_path: Path, how: str) -> None:
    options = ["--workers", "2"] if how == "two workers" else []
    for name, start in {"blocked": BLOCKED, "thread": IN_A_THREAD}.items():
        folder = tmp_path / name
        folder.mkdir()
        with begin(folder, start, *options, stdio=how == "stdio") as server:
            assert server.end(signal.SIGTERM) == 0
            left = "lifespan (slow.py:" if name == "blocked" else "a thread or a generator"
            assert f"code that is still running: {left}" in server.log


def test_the_cleanup_of_a_canceled_lifespan_has_the_drain_time(tmp_path: Path) -> None:
    mark = tmp_path / "goes on"
    with begin(tmp_path, NEVER, stop=f"await wait_for({str(mark)!r})") as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "Stopping before the server was ready" in server.log, server.path)
        assert server.process.poll() is None
        mark.touch()
        assert server.end() == 0
        assert "cleaned up" in server.log


@pytest.mark.parametrize(("ready", "stop"), [(False, NEVER), (False, BLOCKED), (True, NEVER)])
def test_cleanup_that_never_ends_is_left_behind(tmp_path: Path, ready: bool, stop: str) -> None:
    with begin(tmp_path, "pass" if ready else NEVER, stop=stop, drain="0.1") as server:
        if ready:
            until(lambda: "is serving" in server.log, server.path)
        assert server.end(signal.SIGTERM) == 0
        left = "code that is still running: lifespan (slow.py:" if stop == BLOCKED else "0.1 s, and is left behind"
        assert left in server.log


@for_each("start", [NEVER, BLOCKED, IN_A_THREAD])
def test_no_starting_worker_outlives_its_supervisor(start: str, tmp_path: Path) -> None:
    with begin(tmp_path, start, "--workers", "2") as server:
        assert server.serving
        assert server.end(signal.SIGKILL) == -signal.SIGKILL


async def test_a_canceled_task_cancels_a_lifespan_that_is_starting() -> None:
    begun, ended = asyncio.Event(), list[str]()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None]:
        begun.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            ended.append("cleaned up")

    mcp = Server("slow", lifespan=lifespan)
    serving = asyncio.create_task(mcp.run_async("http", port=free_port()))
    await begun.wait()
    serving.cancel()
    await asyncio.wait([serving])
    assert serving.cancelled()
    assert ended == ["cleaned up"]
