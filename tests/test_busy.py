import os
import signal
import subprocess
import sys
import time

import pytest

from cases import for_each
from patience import WAIT
from scripts.busy import KINDS, descendants, run, standstill, stopped

pytestmark = pytest.mark.check

SEES_ITS_CHILD_STOP_AND_GO_ON = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
stopped = os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
went_on = os.WIFCONTINUED(os.waitpid(child.pid, os.WCONTINUED)[1])
child.communicate(b"end")
sys.exit(7 if stopped and went_on else 1)
"""


def test_busy_pauses_and_resumes_a_command() -> None:
    command = [sys.executable, "-c", SEES_ITS_CHILD_STOP_AND_GO_ON]
    assert run(command, seed=1, between=(0.0, 0.01), seconds=0.01) == 7


def test_busy_pauses_only_descendants() -> None:
    nested = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['cat'], check=True)"]
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger,
        subprocess.Popen(nested, stdin=subprocess.PIPE) as command,
    ):
        deadline = time.monotonic() + WAIT
        while len(tree := descendants(command.pid)) < 2:
            assert time.monotonic() < deadline
        assert command.pid in tree
        assert not {stranger.pid, os.getpid()} & set(tree)
        (grandchild,) = set(tree) - {command.pid}
        assert KINDS["leaves"](tree) == {grandchild}
        assert KINDS["parents"](tree) == {command.pid}
        assert KINDS["all"](tree) == set(tree)
        command.communicate()
        stranger.communicate()


@for_each("meanwhile", [False, True], ids=["before", "meanwhile"])
def test_busy_does_not_resume_processes_stopped_by_others(meanwhile: bool) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as command:
        if not meanwhile:
            command.send_signal(signal.SIGSTOP)
            _until_stopped(command.pid)
        with standstill(command.pid, "all") as count:
            assert count == meanwhile
            _until_stopped(command.pid)
            command.send_signal(signal.SIGSTOP)
        assert stopped(command.pid)
        command.send_signal(signal.SIGCONT)
        with standstill(command.pid, "all") as count:
            assert count == 1
            _until_stopped(command.pid)
        assert not stopped(command.pid)
        command.communicate()


def _until_stopped(pid: int) -> None:
    deadline = time.monotonic() + WAIT
    while not stopped(pid):
        assert time.monotonic() < deadline


def test_servers_start_on_a_busy_machine() -> None:
    command = [sys.executable, "-c", "from millstream import Settings; Settings.load()"]
    assert run(command, seed=1) == 0
