import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from cases import for_each
from command_line import CliRunner
from millstream import Client
from millstream._app.server_process import CommandError
from millstream._cli import project as projects
from millstream._cli.program import program
from millstream._cli.serve import without_packages
from millstream._version import __version__
from millstream.client._errors import ClientError
from patience import WAIT
from processes import ROOT, free_port, wait_for_port

COMMAND = [sys.executable, "-m", "millstream"]


@pytest.mark.server
async def test_new_projects_run(folder: Path) -> None:
    done = CliRunner().invoke(program("init"), ["init", "My Shop", "--json"])
    names = ["server.py", "test_server.py", "pyproject.toml", "README.md", ".gitignore"]
    assert json.loads(done.stdout)["files"] == names
    project = folder / "My Shop"
    async with Client([sys.executable, str(project / "server.py")]) as client:
        assert (client.server.name, client.transport) == ("My Shop", "stdio")
        assert await client.call("greet", name="Ada", result_type=str) == "Hello, Ada!"


@pytest.mark.parametrize(("transport", "run"), [("http", "mcp.run()"), ("stdio", 'mcp.run(transport="stdio")')])
def test_new_projects_explain_how_to_serve_them(transport: str, run: str, folder: Path) -> None:
    assert CliRunner().invoke(program("init"), ["init", f"--{transport}"]).exit_code == 0
    assert run in (folder / "server.py").read_text("utf-8")
    assert ("--transport stdio" in (folder / "README.md").read_text("utf-8")) is (transport == "stdio")


ORIGINS: list[tuple[dict[str, Any] | None, str]] = [
    (None, f"millstream>={__version__}"),
    ({"url": "file:///home/ada/millstream", "dir_info": {"editable": True}}, "@ file:///home/ada/millstream"),
    ({"url": "file:///tmp/millstream-0.1.0-py3-none-any.whl", "archive_info": {}}, "0.1.0-py3-none-any.whl"),
    (
        {"url": "https://example.com/millstream.git", "vcs_info": {"vcs": "git", "commit_id": "abc1"}},
        "millstream @ git+https://example.com/millstream.git@abc1",
    ),
]
"""Origin of the installed package (PEP 610), and what a new project requires."""


@for_each(("origin", "required"), ORIGINS)
def test_new_projects_require_millstream_from_where_it_was_installed(
    origin: dict[str, Any] | None, required: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(projects, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    place = f"shop-{abs(hash(required))}"
    assert CliRunner().invoke(program("init"), ["init", place]).exit_code == 0
    (own,) = tomllib.loads((folder / place / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert own.endswith(required)
    assert Requirement(own).name == "millstream"
    readme = (folder / place / "README.md").read_text("utf-8")
    assert f"pip install {'millstream' if origin is None else repr(own)} pytest" in readme
    assert CliRunner().invoke(program("init"), ["init", f"{place}-math", "--template", "math"]).exit_code == 0
    listed = (folder / f"{place}-math" / "requirements.txt").read_text("utf-8").splitlines()
    assert listed == tomllib.loads((folder / f"{place}-math" / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = (each for each in map(Requirement, listed) if each.name == "millstream")
    assert found.extras == {"schema", "uvicorn"}
    assert found.url == (None if origin is None else Requirement(own).url)


def test_new_projects_overwrite_nothing(folder: Path) -> None:
    (folder / "README.md").write_text("mine", "utf-8")
    done = CliRunner().invoke(program("init"), ["init"])
    assert isinstance(done.exception, CommandError)
    assert "README.md" in done.exception.what
    assert [each.name for each in folder.iterdir()] == ["README.md"]


def test_templates_get_their_own_folder(folder: Path) -> None:
    for words, place in ((["init", "--template", "math"], "math"), (["init", ".", "--template", "greet"], ".")):
        assert CliRunner().invoke(program("init"), words).exit_code == 0
        assert (folder / place / "requirements.txt").is_file()
    assert (folder / "servernetwork.py").is_file()
    assert not (folder / "mcp_client_http.py").exists()


def test_deployment_template_is_self_contained(folder: Path) -> None:
    assert CliRunner().invoke(program("init"), ["init", "shop", "--template", "deploy"]).exit_code == 0
    made = folder / "shop"
    texts = {path.relative_to(made).as_posix(): path.read_text("utf-8") for path in made.rglob("*") if path.is_file()}
    assert [name for name, text in texts.items() if "deploy/" in text] == []
    services = yaml.safe_load(texts["compose.yaml"])["services"]
    assert services["app"]["build"] == {"context": ".", "dockerfile": "Dockerfile"}
    mounted = [each.split(":")[0].removeprefix("./") for each in services["nginx"]["volumes"]]
    copied = re.findall(r"^COPY (?!--from)(\S+)", texts["Dockerfile"], re.MULTILINE)
    assert {*mounted, *copied} - texts.keys() == {"certs"}
    assert {".env", "certs/"} <= set(texts[".gitignore"].split())
    assert {"systemd/millstream.service", "chart/Chart.yaml", ".env.example", "server.py"} <= texts.keys()


def test_template_and_repository_images_are_the_same(folder: Path) -> None:
    assert CliRunner().invoke(program("init"), ["init", "shop", "--template", "deploy"]).exit_code == 0
    stages = [
        (path / "Dockerfile").read_text("utf-8").rpartition("\nFROM ")[2] for path in (ROOT / "deploy", folder / "shop")
    ]
    ours, theirs = (
        re.sub(r"(?m)^(LABEL|  .*LABEL|#|COPY|      org).*\n|\n+", "\n", each).split("\n") for each in stages
    )
    assert [line for line in ours if line] == [line for line in theirs if line]


def test_names_with_quotes_make_valid_files(folder: Path) -> None:
    name = "a \"b\" \\ 'c' é"
    assert CliRunner().invoke(program("init"), ["init", "x", "--name", name]).exit_code == 0
    source = (folder / "x" / "server.py").read_text("utf-8")
    scope: dict[str, object] = {"__name__": "server"}
    exec(compile(source, "server.py", "exec"), scope)  # noqa: S102 - it's ours
    assert scope["mcp"].name == name  # type: ignore[attr-defined]  # a server


@contextmanager
def started(folder: Path, *arguments: str, env: dict[str, str]) -> Iterator[tuple[int, Path]]:
    """Start a command that serves, and yield its output."""
    port, log = free_port(), folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--port", str(port)], cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            env={**os.environ, **env},
        )  # fmt: skip
    try:
        wait_for_port(process, port, log)
        yield port, log
    finally:
        process.terminate()
        process.wait(WAIT)


def wheel(folder: Path) -> Path:
    """A package that isn't installed."""
    path = folder / "whistle-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: whistle\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("whistle.py", "TUNE = 'la'\n")
        archive.writestr("whistle-1.0.dist-info/METADATA", about)
        archive.writestr(
            "whistle-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("whistle-1.0.dist-info/RECORD", "")
    return path


SERVER = """\
import os
import re
import whistle
from millstream import Server

mcp = Server("tunes")

@mcp.tool
def {name}() -> str:
    return whistle.TUNE + os.environ["TUNE"]
"""


async def called(port: int, tool: str) -> str:
    async with Client(f"http://127.0.0.1:{port}/mcp") as client:
        return (await client.call(tool)).text


async def until(port: int, tool: str, text: str) -> None:
    """Call the server until it runs the new program."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                if await called(port, tool) == text:
                    return
            except ClientError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.server
async def test_dev_installs_packages_and_reloads(tmp_path: Path) -> None:
    (tmp_path / "tunes.py").write_text(SERVER.format(name="sing"), "utf-8")
    (tmp_path / ".env").write_text("TUNE=la\nOTHER=file\n", "utf-8")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n', "utf-8")
    browser.chmod(0o755)
    words = ["dev", "tunes.py", "--with", str(wheel(tmp_path)), "--env-file", ".env"]
    with started(tmp_path, *words, env={"BROWSER": str(browser)}) as (port, log):
        await until(port, "sing", "lala")
        (tmp_path / "tunes.py").write_text(SERVER.format(name="hum") + "\nnothing\n", "utf-8")
        async with asyncio.timeout(WAIT):
            while "NameError" not in log.read_text("utf-8"):  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.05)
        assert await called(port, "sing") == "lala"
        (tmp_path / "tunes.py").write_text(SERVER.format(name="hum"), "utf-8")
        await until(port, "hum", "lala")
        async with asyncio.timeout(WAIT):
            while not (tmp_path / "opened").exists():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.05)
    assert (tmp_path / "opened").read_text("utf-8") == f"http://127.0.0.1:{port}/inspect\n"


@pytest.mark.server
async def test_run_installs_packages_and_keeps_variables(tmp_path: Path) -> None:
    (tmp_path / "tunes.py").write_text(SERVER.format(name="sing"), "utf-8")
    (tmp_path / "vars").write_text("TUNE=file\n", "utf-8")
    words = ["run", "tunes.py", f"--with={wheel(tmp_path)}", "--env-file", "vars"]
    with started(tmp_path, *words, env={"TUNE": "set"}) as (port, _):
        assert await called(port, "sing") == "laset"


def test_program_started_by_uv_installs_no_packages() -> None:
    words = ["run", "a.py", "--with", "x", "--with=y", "--port", "1", "--with-editable", "z", "--with-editable=w"]
    assert without_packages(words) == ["run", "a.py", "--port", "1"]


@pytest.mark.parametrize("name", ["dev", "run"])
def test_missing_uv_is_explained(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(folder))
    done = CliRunner().invoke(program(name), [name, "a.py", "--with", "x"])
    assert isinstance(done.exception, CommandError)
    assert "pip install uv" in done.exception.fix


@pytest.mark.server
def test_dev_notices_edits_made_during_loading(tmp_path: Path) -> None:
    program = "from millstream import Server\nmcp = Server('late')\n"
    edits_itself = f"from pathlib import Path\nPath(__file__).write_text({program!r}, 'utf-8')\nnothing\n"
    (tmp_path / "a.py").write_text(edits_itself, "utf-8")
    with started(tmp_path, "dev", "a.py", env={}) as (_, log):
        assert "Waiting for a change" in log.read_text("utf-8")
