import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import CliRunner, Result
from millstream._cli import install as command
from millstream._cli.program import program
from millstream.client._applications import APPLICATIONS, System
from patience import WAIT

pytestmark = pytest.mark.server

SHOP = Path(__file__).resolve().parents[1] / "client" / "shop.py"
PROGRAM = Path(sys.executable).with_name("millstream")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home on Linux."""
    monkeypatch.setattr(command, "system_here", lambda: System(kind="linux", home=tmp_path))
    return tmp_path


def install(key: str, *more: str) -> Result:
    return CliRunner().invoke(program("install"), ["install", str(SHOP), "--client", key, "--yes", *more])


@pytest.mark.parametrize("key", [key for key, each in APPLICATIONS.items() if not each.snippet])
def test_undo_restores_empty_files(key: str, home: Path) -> None:
    path = APPLICATIONS[key].place(System(kind="linux", home=home))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert install(key).exit_code == 0
    assert path.read_bytes()
    assert install(key, "--undo").exit_code == 0
    assert path.read_bytes() == b""
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("linked", [False, True], ids=["itself", "by a link"])
def test_irregular_configuration_files_are_rejected(linked: bool, tmp_path: Path) -> None:
    path = tmp_path / ".cursor" / "mcp.json"
    path.parent.mkdir()
    pipe = tmp_path / "pipe" if linked else path
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    # By a process, which can be ended if it hangs.
    arguments = [PROGRAM, "install", SHOP, "--client", "cursor", "--yes"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=WAIT, check=False)
    assert (done.returncode != 0, f"{path} isn't a regular file" in done.stderr) == (True, True)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(path.parent.iterdir()) == [path]
