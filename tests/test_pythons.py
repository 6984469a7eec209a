import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patience import WAIT

pytestmark = pytest.mark.check

ROOT = Path(__file__).resolve().parent.parent
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder for PATH that has what the script needs, and neither a Python nor apt."""
    for tool in ("bash", "dirname", "rm"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    return tmp_path


def ask(machine: Path, version: str) -> subprocess.CompletedProcess[str]:
    """Run the script on such a machine."""
    environment = {"PATH": str(machine), "PYENV_ROOT": str(machine / "pyenv")}
    command = [str(machine / "bash"), str(ROOT / "scripts" / "python"), version]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT, check=False)


@pytest.mark.parametrize("place", ["python{}", "pyenv/versions/{}.7/bin/python"])
def test_installed_pythons_are_used(machine: Path, place: str) -> None:
    python = machine / place.format(VERSION)
    python.parent.mkdir(parents=True, exist_ok=True)
    python.symlink_to(sys.executable)
    assert ask(machine, VERSION).stdout == f"{python}\n"


def test_other_python_versions_are_not_used(machine: Path) -> None:
    (machine / "python3.99").symlink_to(sys.executable)
    assert ask(machine, "3.99").returncode == 1


def test_missing_pythons_are_listed_in_one_line(machine: Path) -> None:
    found = ask(machine, "3.99")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("Python 3.99 is missing: ")
    assert found.stderr.count("\n") == 1
    assert not (ROOT / ".pythons" / "3.99").exists()


@pytest.mark.parametrize("version", ["", "3", "latest", "3.14.1", "../3.14"])
def test_python_versions_have_two_numbers(machine: Path, version: str) -> None:
    found = ask(machine, version)
    assert (found.returncode, found.stdout) == (1, "")
    assert "Write two numbers, like 3.14." in found.stderr
