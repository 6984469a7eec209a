"""schemathesis, with all default checks, finds no deviation from the served document.

It sends valid and invalid input, and compares each reply with the document. The run has a seed and a bounded number of
cases; `schemathesis run http://127.0.0.1:8000/openapi.json` runs more of them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from patience import WAIT
from processes import free_port, run_command, run_server, uvicorn_command

pytestmark = [pytest.mark.server, pytest.mark.nightly]

CASES = 15


def run(port: int, folder: Path, *options: str) -> str:
    """Run it against a server; gives its report, fails with it when something was found."""
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"http://127.0.0.1:{port}/openapi.json"]
    bounds = ["--phases", "examples,coverage,fuzzing", "--max-examples", str(CASES), "--seed", "1"]
    done = subprocess.run(
        [*command, *bounds, *options], capture_output=True, text=True, cwd=folder, timeout=5 * WAIT, check=False
    )  # hundreds of requests
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tools_conform_to_the_document(tmp_path: Path) -> None:
    port = free_port()
    command = uvicorn_command("rest_world:app", port, "--lifespan", "off", "--app-dir", "tests/support")
    with run_server(command, port, tmp_path / "log"):
        report = run(port, tmp_path)
    assert "14 selected / 14 total" in report
    assert "No issues found" in report


def test_example_server_conforms_to_its_document(tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command("examples/hub.py", port), port, tmp_path / "log"):
        assert "No issues found" in run(port, tmp_path, "--exclude-operation-id", "long_task")
