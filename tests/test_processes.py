"""What tests start ends with them, and what they get is theirs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, answers, free_port, millstream, serving
from redis_parts import RedisServer
from workers_world import started, until


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the kernel's way is Linux's, its tool is of util-linux")
def test_a_server_of_a_test_run_that_is_killed_ends_with_it() -> None:
    """Fixed defect: servers stayed behind, because whoever is killed cleans nothing up."""
    run = """
import os, signal, subprocess
from processes import tied
server = subprocess.Popen(tied(["sleep", "86400"]), stdout=subprocess.DEVNULL)
while b"sleep" not in open(f"/proc/{server.pid}/cmdline", "rb").read().split(b"\\0")[0]:
    pass
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    killed = subprocess.run(
        [sys.executable, "-c", run], env=environment, stdout=subprocess.PIPE, timeout=WAIT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + WAIT
    while runs(int(killed.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nobody_listens_at_a_free_port_though_a_child_was_forked_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed defect: a child of another thread kept the listener until exec(2), and was taken for the server."""
    kept: list[socket.socket] = []
    listen = socket.socket.listen

    def as_a_fork_does(listener: socket.socket) -> None:
        listen(listener)
        kept.append(listener.dup())

    with monkeypatch.context() as patched:
        patched.setattr(socket.socket, "listen", as_a_fork_does)
        port = free_port()
    (copy,) = kept
    with copy:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), WAIT)
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port


def test_a_free_port_is_given_to_no_client_that_comes_from_another_address() -> None:
    """Fixed defect: a server that listens on every address, as those of Node do, found its port taken by a client at
    127.0.0.2 or a server at ::1: the kernel keeps a port that one address has just had from that address alone.
    """
    ports = {free_port() for _ in range(300)}
    assert len(ports) == 300
    assert max(ports) < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with socket.create_server(("", ports.pop())):
        pass


def runs(pid: int) -> bool:
    """Whether there's such a process, and not merely waiting to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.server
@pytest.mark.parametrize("how", [serving, started])
def test_a_server_starts_though_redis_stands_still_with_the_machine(
    tmp_path: Path, how: Callable[[list[str], int, Path], AbstractContextManager[object]]
) -> None:
    """Fixed defect: tests failed with "Redis doesn't answer" where everything had stood still for eight seconds."""
    redis, port, log = RedisServer(), free_port(), tmp_path / "log"
    command = millstream(str(ROOT / "examples/greet.py"), port, "--store", redis.url, "--json")
    with closing(redis):
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)

        def goes_on() -> None:
            until(lambda: log.exists() and "can't be" in log.read_text("utf-8", "replace"))
            redis.process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]

        with ThreadPoolExecutor(1) as machine:
            going = machine.submit(goes_on)
            with how(command, port, log):
                going.result()
                assert answers(port)
