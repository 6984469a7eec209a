import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CliRunner, program
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server
PROGRAM = """
import asyncio
from pathlib import Path
from millstream import Context, Server, Settings

HERE = Path(__file__).parent
mcp = Server("shop", settings=Settings(task_poll=0.01))


@mcp.tool(task="allowed")
async def report(year: int, ctx: Context) -> str:
    '''Make a report.'''
    await ctx.progress(1, 2, "Reading")
    while not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    return f"The report of {year}"
"""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a server, set a temporary state folder, and yield the server's URL."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file, port = tmp_path / "shop.py", free_port()
    file.write_text(PROGRAM)
    with run_server(run_command(str(file), port), port, tmp_path / "log"):
        yield f"http://127.0.0.1:{port}/mcp"


def run(*words: str) -> tuple[int, str, str]:
    """Run a command and return its result."""
    result = CliRunner().invoke(program(), list(words))
    return result.exit_code, result.stdout, result.stderr


def test_task_keeps_running_after_ctrl_c(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "millstream", "call", url, "report", "year=2026", "--task"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as calling:
        assert calling.stderr is not None
        found = re.search(rf"^Started task (\S+)\..* millstream tasks {url} (\S+) --wait", calling.stderr.readline())
        assert found is not None
        task_id = found[1]
        assert task_id == found[2]
        assert "Reading (1 of 2)" in calling.stderr.readline()
        calling.send_signal(signal.SIGINT)
        assert calling.wait(WAIT) == 130
    assert run("tasks", url)[1].split("\t")[:3] == [task_id, "report", "working"]
    assert run("tasks", url, task_id) == (0, "working: Reading (1 of 2)\n", "")
    command = [sys.executable, "-m", "millstream", "tasks", url, task_id, "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        assert "Reading (1 of 2)" in waiting.stderr.readline()
        (tmp_path / "go").touch()
        assert waiting.communicate(timeout=WAIT)[0] == "The report of 2026\n"
    assert run("tasks", url, task_id)[1] == "The report of 2026\n"
    (shown,) = json.loads(run("tasks", url, "--json")[1])
    assert (shown["taskId"], shown["status"]) == (task_id, "completed")


def test_command_cancels_a_task_by_its_id(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "millstream", "call", url, "report", "year=2026", "--task"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as calling:
        assert calling.stderr is not None
        task_id = calling.stderr.readline().split()[2].rstrip(".")
        assert run("tasks", url, task_id, "--cancel") == (0, "", f"Canceled {task_id}.\n")
        assert calling.wait(WAIT) == 1
        assert "was canceled" in calling.stderr.read()
    assert "Unknown task" in run("tasks", url, "nothing")[2]
    assert "require a task" in run("tasks", url, "--wait")[2]
    (tmp_path / "go").touch()
    code, printed, noted = run("call", url, "report", "year=7", "--task", "--revision", "2025-11-25")
    assert (code, printed) == (0, "The report of 7\n")
    assert "doesn't support tasks" in noted
