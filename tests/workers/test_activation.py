import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from patience import WAIT
from processes import free_port
from workers_world import LAUNCHER, PROGRAM, Program, pids_by_new_connections, start_program

pytestmark = pytest.mark.server


@contextmanager
def activated(folder: Path, how: str, *options: str) -> Iterator[Program]:
    """A program that is started with a socket on which clients may wait already."""
    (folder / "shop.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", free_port()), backlog=64) as listener:
        port = listener.getsockname()[1]
        start = "from millstream._cli import main; main()"
        command = [sys.executable, "-c", LAUNCHER, str(listener.fileno()), how, "-c", start, "run"]
        command += [str(folder / "shop.py"), *options]
        with start_program(command, port, folder / "log", pass_fds=[listener.fileno()]) as served:
            yield served


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("listen", []),
        ("listen", ["--workers", "2"]),
        ("fd", ["--fd", "3"]),
        ("fd", ["--fd", "3", "--workers", "2"]),
    ],
    ids=["alone", "with workers", "alone by option", "with workers by option"],
)
async def test_passed_sockets_are_used(tmp_path: Path, how: str, options: list[str]) -> None:
    with activated(tmp_path, how, *options) as served:
        (told,) = [record for record in served.records if "url" in record]
        assert told["url"] == f"http://127.0.0.1:{served.port}/mcp"
        found = await pids_by_new_connections(served.port, 5)
        assert set(found) <= set(told.get("workers", [served.process.pid]))


@pytest.mark.parametrize("what", ["nothing", "a file", "another kind of socket"])
def test_invalid_descriptors_are_explained(tmp_path: Path, what: str) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, (tmp_path / "shop.py").open() as file:
        number = {"nothing": 250, "a file": file.fileno(), "another kind of socket": other.fileno()}[what]
        done = subprocess.run(
            [sys.executable, "-c", "from millstream._cli import main; main()", "run", "shop.py", "--fd", str(number)],
            capture_output=True, text=True, timeout=WAIT, check=False, cwd=tmp_path,
            pass_fds=[] if what == "nothing" else [number],
        )  # fmt: skip
    assert done.returncode == 1
    assert f"Descriptor {number} isn't a" in done.stderr
    assert "--host and --port" in done.stderr


def test_activation_variables_for_other_processes_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(PROGRAM)
    port = free_port()
    command = [sys.executable, "-c", "from millstream._cli import main; main()", "run", str(tmp_path / "shop.py")]
    environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with start_program([*command, "--port", str(port)], port, tmp_path / "log", env=environment) as served:
        assert served.count_lines(f"is serving on http://127.0.0.1:{port}/mcp") == 1
