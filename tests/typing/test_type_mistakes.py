import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest

from millstream import Context, SyncContext
from millstream.client import BlockingClient, Client
from patience import WAIT
from processes import NODE

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MARK = "# wrong"
FILES = ("mistakes.py", "server_signatures.py", "client_signatures.py", "revealed_types.py")
"""The mistakes, and programs without any that use each documented signature, and reveal types."""
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


@pytest.mark.parametrize("owner", [Client, BlockingClient])
def test_type_of_each_client_attribute_is_checked(owner: type[Client | BlockingClient]) -> None:
    used = {
        use.attr
        for check in ast.walk(ast.parse((HERE / "revealed_types.py").read_text("utf-8")))
        if isinstance(check, ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.unparse(check.args).startswith(f"client: {owner.__name__},")
        for use in ast.walk(check)
        if isinstance(use, ast.Attribute) and ast.unparse(use.value) == "client"
    }
    assert used == {name for name in dir(owner) if not name.startswith("_")}


def type_of(property_of: object) -> type[Any]:
    """Return the class that a property is annotated with."""
    kind: type[Any] = get_type_hints(cast("property", property_of).fget)["return"]
    return kind


@pytest.mark.parametrize(
    ("blocking", "asynchronous", "left_out"),
    [
        (BlockingClient, Client, {"events", "tasks", "watch"}),
        (SyncContext, Context, set[str]()),
        (type_of(SyncContext.hub), type_of(Context.hub), set[str]()),
        (type_of(SyncContext.user_state), type_of(Context.user_state), set[str]()),
    ],
)
def test_blocking_class_has_the_members_and_parameters_of_its_original(
    blocking: type[Any], asynchronous: type[Any], left_out: set[str]
) -> None:
    names = {name for name in dir(asynchronous) if not name.startswith("_")} - left_out
    assert names == {name for name in dir(blocking) if not name.startswith("_")}
    for name in names:
        mine, original = getattr(blocking, name), getattr(asynchronous, name)
        assert callable(mine) == callable(original)
        if callable(mine):
            both = [inspect.signature(each).parameters.values() for each in (mine, original)]
            assert len({tuple((each.name, each.kind, each.default) for each in one) for one in both}) == 1, name


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
