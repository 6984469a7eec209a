import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from patience import WAIT
from processes import NODE

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MARK = "# wrong"
FILES = ("mistakes.py", "server_signatures.py", "client_signatures.py")
"""The mistakes, and programs without any that use each documented signature."""
CHECKERS_WAIT = 5 * WAIT
"""Half a minute of processor time each, of cores that other tests use, too."""
PYRIGHT = ROOT / "requirements" / "pyright" / "node_modules" / "pyright" / "index.js"

pytestmark = [
    pytest.mark.check,
    pytest.mark.server,
    pytest.mark.skipif(not PYRIGHT.exists(), reason="make check installs pyright"),
]


def pyright(*options: str, cwd: Path, path: str = "", programs: Path = Path(sys.executable).parent) -> dict[str, Any]:
    """Return the report of pyright for this interpreter, or for another in a folder of programs."""
    node = Path(NODE)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{node.parent}", "PYTHONPATH": path}
    done = subprocess.run(
        [str(node), str(PYRIGHT), "--outputjson", *options],
        capture_output=True,
        text=True,
        timeout=CHECKERS_WAIT,
        cwd=cwd,
        env=environment,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def copy_files(folder: Path) -> set[tuple[str, int]]:
    """Copy the files, and return the lines marked as wrong."""
    for name in FILES:
        shutil.copy(HERE / name, folder)
    lines = ((name, enumerate((HERE / name).read_text("utf-8").splitlines(), 1)) for name in FILES)
    return {(name, number) for name, numbered in lines for number, line in numbered if line.endswith(MARK)}


def test_type_mistakes_file_has_at_least_forty_mistakes(tmp_path: Path) -> None:
    assert len(copy_files(tmp_path)) >= 40


def test_pyright_reports_exactly_the_mistakes(tmp_path: Path) -> None:
    marked = copy_files(tmp_path)
    report = pyright(*FILES, cwd=tmp_path, path=str(ROOT / "src"))
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    assert {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in errors} == marked


def test_mypy_reports_exactly_the_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is part of make check, not of make test")
    marked = copy_files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "", "--no-incremental", *FILES],
        capture_output=True,
        text=True,
        timeout=CHECKERS_WAIT,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        check=False,
    )
    lines = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    assert {(line[0], int(line[1])) for line in lines} == marked, done.stdout


def test_public_interface_is_typed_and_small() -> None:
    report = pyright("--verifytypes", "millstream", "--ignoreexternal", cwd=ROOT, path=str(ROOT / "src"))[
        "typeCompleteness"
    ]
    untyped = [each["name"] for each in report["symbols"] if not each["isTypeKnown"]]
    assert report["completenessScore"] >= 0.99, untyped
    exported = report["exportedSymbolCounts"]
    # What extensions import is public, unlike what the gateway does: docs/decisions/0053.
    assert 100 < sum(exported.values()) <= 1_080


EXTRAS = {
    "jsonschema_rs",
    "keyring",
    "nats",
    "openai",
    "opentelemetry",
    "pydantic",
    "pydantic_ai",
    "pydantic_core",
    "redis",
}


def test_installation_without_extras_is_fully_typed(tmp_path: Path) -> None:
    venv.create(tmp_path, symlinks=True)
    installed = Path(sysconfig.get_path("purelib"))
    for each in installed.iterdir():
        if each.name.partition(".")[0] not in EXTRAS:
            (tmp_path / installed.relative_to(sys.prefix) / each.name).symlink_to(each)
    options = ("--verifytypes", "millstream", "--ignoreexternal")
    made = pyright(*options, cwd=tmp_path, path=str(ROOT / "src"), programs=tmp_path / "bin")
    report = made["typeCompleteness"]
    untyped = [each["name"] for each in report["symbols"] if not each["isTypeKnown"]]
    assert len(untyped) < len(report["symbols"])
    assert [name for name in untyped if not name.startswith("millstream.compat")] == []  # it needs pydantic
