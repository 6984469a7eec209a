"""What tests start ends with them, and what they get is theirs."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, free_port


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


def runs(pid: int) -> bool:
    """Whether there's such a process, and not merely waiting to be counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
