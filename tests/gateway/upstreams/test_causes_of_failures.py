"""What an operator reads about an upstream that can't be used: `doctor`, `/health`, and the log."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from command_line import run_in_process
from patience import WAIT
from processes import free_port, run_server

pytestmark = pytest.mark.server

SHOP = '''
from millstream import Server

mcp = Server("shop")

@mcp.tool
def price() -> int:
    """Return the price."""
    return 3
'''


def write_gateway(folder: Path, bad: str, *, top: str = "") -> Path:
    """Write the file of a gateway with an upstream that works, and one that doesn't."""
    (folder / "shop.py").write_text(SHOP)
    command = [sys.executable, "-m", "millstream", "run", str(folder / "shop.py"), "--transport", "stdio"]
    file = folder / "gateway.toml"
    file.write_text(f"{top}\n[upstreams.good]\ncommand = {json.dumps(command)}\n\n[upstreams.bad]\n{bad}\n")
    return file


@contextmanager
def run_gateway(file: Path) -> Iterator[str]:
    """Run the gateway of a file and yield its origin."""
    port = free_port()
    command = [sys.executable, "-m", "millstream", "gateway", str(file), "--port", str(port)]
    with run_server(command, port, file.parent / "log"):
        yield f"http://127.0.0.1:{port}"


def diagnose(target: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run `doctor` and return its exit status and its steps by name."""
    done = run_in_process("doctor", target, "--json")
    return done.exit_code, {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def wait_for_state(origin: str, name: str, state: str) -> dict[str, Any]:
    """Wait until `/health` shows this state of an upstream, and return what it says about it."""
    end = time.monotonic() + WAIT
    while True:
        with urlopen(f"{origin}/health") as reply:  # noqa: S310  our own server
            found = {each["name"]: each for each in json.load(reply)["upstream_states"]}[name]
        if found["state"] == state:
            return dict(found)
        assert time.monotonic() < end, found


def causes() -> dict[str, tuple[str, str]]:
    """Return configurations that can't work, and words of the cause that an operator has to find."""
    leaving = json.dumps([sys.executable, "-c", "import sys; sys.exit('no license')"])
    port = free_port()
    return {
        "nothing listens": (f'url = "http://127.0.0.1:{port}/mcp"', f"127.0.0.1:{port}"),
        "a command exits": (f"command = {leaving}", "no license"),
        "no such command": ('command = ["no-such-command-here"]', "no-such-command-here"),
    }


@pytest.mark.parametrize("cause", ["nothing listens", "a command exits", "no such command"])
def test_doctor_health_and_log_name_the_cause(tmp_path: Path, cause: str) -> None:
    bad, words = causes()[cause]
    file = write_gateway(tmp_path, bad, top=f'store = "sqlite:///{tmp_path}/gateway.db"')
    with run_gateway(file) as origin:
        state = wait_for_state(origin, "bad", "degraded")
        assert words in state["reason"]
        assert state["since"] > 0
        assert wait_for_state(origin, "good", "ready")["revision"]
        for target in (f"{origin}/mcp", str(file)):  # the file's store is in use by the running gateway
            status, steps = diagnose(target)
            assert status == 1, steps
            assert words in steps["upstream bad"]["found"], steps
            assert steps["upstream good"]["found"].startswith("ready since "), steps
    assert words in (tmp_path / "log").read_text()


def test_health_of_each_worker_shows_what_all_workers_see(tmp_path: Path) -> None:
    once = f"import os; os.mkdir({str(tmp_path / 'taken')!r})\n{SHOP}\nmcp.run()\n"  # only one worker's process starts
    file = write_gateway(tmp_path, f"command = {json.dumps([sys.executable, '-c', once])}")
    port, end = free_port(), time.monotonic() + WAIT
    command = [sys.executable, "-m", "millstream", "gateway", str(file), "--port", str(port), "--workers", "2"]
    with run_server(command, port, tmp_path / "log"):
        origin, merged = f"http://127.0.0.1:{port}", 0
        while merged < 20:  # each connection can reach another worker
            assert time.monotonic() < end, merged
            with urlopen(f"{origin}/health") as reply:  # noqa: S310  our own server
                health = json.load(reply)
            states = {each["name"]: each for each in health["upstream_states"]}
            if states["bad"]["workers"] != {"ready": 1, "degraded": 1} or states["good"]["workers"] != {"ready": 2}:
                continue
            merged += 1
            assert (health["status"], health["upstreams"]) == ("degraded", {"bad": "degraded", "good": "ready"})
            assert health["reasons"] == ["upstreams that can't be used: bad"]
        while True:  # on a busy machine, a worker can respond too late
            status, steps = diagnose(f"{origin}/mcp")
            if "of 2 workers" in steps["upstream bad"]["found"]:
                break
            assert time.monotonic() < end, steps
        assert status == 1


def test_doctor_reports_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[upstreams.bad]\nurl = [oops\n")
    status, steps = diagnose(str(file))
    assert status == 1
    assert "line 2" in steps["connection"]["found"]
