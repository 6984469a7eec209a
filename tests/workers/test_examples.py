import sys
from pathlib import Path

import pytest

from patience import WAIT
from processes import ROOT, free_port, is_answering, run_command
from workers_world import pids_by_new_connections, start_program

pytestmark = pytest.mark.server


@pytest.mark.parametrize("options", [["--workers", "2"], ["--reload"]], ids=["workers", "reload"])
def test_documented_commands_start_a_server(tmp_path: Path, options: list[str]) -> None:
    port = free_port()
    with start_program(run_command("examples/hub.py", port, *options), port, tmp_path / "log", cwd=ROOT) as served:
        assert is_answering(port)
        assert len(served.pids) == (2 if "--workers" in options else 1)


async def test_documented_program_serves_with_two_workers(tmp_path: Path) -> None:
    port = free_port()
    program = tmp_path / "several_workers.py"
    program.write_text((ROOT / "examples" / "several_workers.py").read_text().replace("8000", str(port)))
    with start_program([sys.executable, str(program)], port, tmp_path / "log") as served:
        assert len(await pids_by_new_connections(port, 60, "answered_by")) == 2
        served.process.terminate()
        assert served.process.wait(WAIT) == 0
