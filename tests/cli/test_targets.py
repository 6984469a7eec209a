"""Every command takes a file, a module of a package, and one of several servers in either."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Result, run_in_process
from millstream import Client
from millstream.client import Options
from patience import WAIT
from processes import free_port, run_server

pytestmark = pytest.mark.server

SERVER = '''
from millstream import Server
import helper
{line}
mcp = Server("{name}", version="1")
other = Server("other")

@mcp.tool
def price() -> int:
    """Return the price."""
    return helper.PRICE

@other.tool
def none() -> None:
    """Return nothing."""
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package, its folder on the path only by its place, and a library on PYTHONPATH."""
    project, library = tmp_path / "project", tmp_path / "library"
    (project / "pkg" / "inner").mkdir(parents=True)
    library.mkdir()
    (library / "helper.py").write_text("PRICE = 3\n")
    for folder, line in (("pkg", "from pkg import parts"), ("pkg/inner", "from ..parts import NAME")):
        (project / folder / "__init__.py").touch()
        (project / folder / "server.py").write_text(SERVER.format(name=folder.rpartition("/")[2], line=line))
    (project / "pkg" / "parts.py").write_text("NAME = 1\n")
    (project / "space").mkdir()
    (project / "space" / "app.py").write_text(SERVER.format(name="app", line="import space.app_parts"))
    (project / "space" / "app_parts.py").touch()
    (project / "single.py").write_text(SERVER.format(name="single", line="from pkg import parts"))
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(library))
    return project


TARGETS = {
    "pkg.server:mcp": "pkg",
    "pkg.server": "pkg",
    "pkg/server.py": "pkg",
    "./pkg/server.py:mcp": "pkg",
    "pkg.inner.server": "inner",
    "pkg/inner/server.py:mcp": "inner",
    "space.app": "app",
    "space/app.py": "app",
    "single": "single",
    "single:mcp": "single",
    "single.py": "single",
}


@pytest.mark.parametrize("target", TARGETS)
def test_commands_take_files_and_modules(target: str, project: Path) -> None:
    called = run_in_process("call", target, "price")
    assert called.stdout == "3\n", called.stderr


def test_each_client_command_takes_a_module_and_an_object(project: Path) -> None:
    commands: dict[str, Result] = {
        name: run_in_process(name, "pkg.server:mcp", "--json") for name in ("list", "info", "ping", "doctor", "tokens")
    }
    assert {name: each.exit_code for name, each in commands.items()} == dict.fromkeys(commands, 0)
    assert '"price"' in commands["list"].stdout
    assert run_in_process("list", "pkg.server:other", "--json").stdout.count('"none"') == 1


def test_modules_are_served_over_http(project: Path) -> None:
    for target in ("pkg.server:mcp", "pkg/inner/server.py"):
        for command in ("run", "dev"):
            port = free_port()
            start = ["env", "-C", str(project), sys.executable, "-m", "millstream"]
            words = [*start, command, target, "--port", str(port)]
            with run_server(words + ["--no-open"] * (command == "dev"), port, project / "log"):
                called = run_in_process("call", f"http://127.0.0.1:{port}/mcp", "price")
                assert called.stdout == "3\n"


async def test_installed_module_starts_in_another_folder(project: Path, tmp_path: Path) -> None:
    for target in ("pkg.server:mcp", "pkg/server.py", "pkg.inner.server"):
        entry = json.loads(run_in_process("install", target, "--client", "json").stdout)["mcpServers"]
        (launch,) = entry.values()
        options = Options(env=launch["env"], cwd=str(tmp_path))
        async with Client([launch["command"], *launch["args"]], options=options, timeout=WAIT) as client:
            assert await client.call("price", result_type=int) == 3


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millstream", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)


def test_recordings_take_modules(project: Path) -> None:
    recorder = f"{sys.executable} -m millstream record log.jsonl pkg.server:mcp"
    called = run_in_process("call", recorder, "price", "--env", f"PYTHONPATH={os.environ['PYTHONPATH']}")
    assert called.stdout == "3\n", called.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("pkg.sever", "There is no module pkg.sever."),
        ("nowhere.server:mcp", "There is no module nowhere.server."),
        ("pkg.server:app", "There is no app in pkg.server."),
        ("single.txt", "Did you mean single.py?"),
        ("pkg", "pkg is a package without a server."),
    ],
)
def test_mistakes_in_modules_are_explained_by_every_command(target: str, message: str, project: Path) -> None:
    for command in ("run", "dev", "list", "doctor"):
        failed = run(command, target, *(["--port", str(free_port())] if command in {"run", "dev"} else []))
        assert failed.returncode != 0
        assert message in " ".join((failed.stdout + failed.stderr).split()), (command, failed)


FACTORY = "from mcp.server import Server\n\ndef create_server():\n    return Server('made')\n"


@pytest.mark.parametrize(
    ("folder", "target", "fix"),
    [
        (
            "",
            "made",
            'Specify a module in it: millstream run made.server, or run its command: millstream run "make-it"',
        ),
        ("", "made.server", 'run it as a command: millstream run "make-it"'),
        ("", "made.server:create_server", "specify a file that calls it: mcp = create_server()"),
        ("", "main.alone", 'run it as a command: millstream run "python -m main"'),
        (
            "",
            "main",
            'Specify a module in it: millstream run main.alone, or run its command: millstream run "python -m',
        ),
        ("", "bare.alone", 'run it as a command: millstream run "python -m bare.alone"'),
        ("", "bare/alone.py", 'run it as a command: millstream run "python bare/alone.py"'),
        ("near", "server", "Specify the file: millstream run server.py"),
        ("loose", "server.py", "Create an __init__.py in the folder"),
    ],
)
def test_packages_without_a_global_server_are_told_what_runs_them(
    folder: str, target: str, fix: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "made/__init__.py": "",
        "made/a_tool.py": "",
        "made/server.py": FACTORY,
        "made-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: made\nVersion: 1\n",
        "made-1.dist-info/entry_points.txt": "[console_scripts]\nmake-it = made.server:main\n",
        "main/__init__.py": "",
        "main/__main__.py": "",
        "main/alone.py": FACTORY,
        "bare/__init__.py": "",
        "bare/alone.py": FACTORY,
        "near/__init__.py": "",
        "near/server.py": "from .other import x\n",
        "loose/server.py": "from .other import x\n",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    monkeypatch.chdir(project / folder)
    failed = run("run", target)
    assert fix in " ".join(failed.stderr.split())


def test_programs_on_the_path_take_precedence_over_installed_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "tool.py").write_text("raise SystemExit('module')")
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\necho program >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path / "installed" / "..")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    for command in ("list", "doctor"):
        assert "exited with code 3" in run_in_process(command, "tool").output
