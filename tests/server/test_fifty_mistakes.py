import logging
import os
import socket
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

import millstream
from millstream._app.server_process import CommandError, convert_start_errors, report
from millstream._cli.load import load
from millstream.testing import connect
from patience import WAIT

PREAMBLE = """from typing import Annotated
from millstream import Context, Field, Server, Settings, SyncContext, auth
mcp = Server("shop", settings=Settings())
"""
OURS = str(Path(millstream.__file__).parent)
TABLE: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "fifty_mistakes.toml").read_text("utf-8"))[
    "mistake"
]


def at_stages(*stages: str) -> Any:
    chosen = [each for each in TABLE if each["stage"] in stages]
    return pytest.mark.parametrize("mistake", chosen, ids=lambda each: each["what"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_mistake(folder: Path, mistake: dict[str, Any]) -> int:
    """Write the file, and return the line of the mistake, or 0."""
    text = PREAMBLE + mistake["code"].lstrip("\n")
    (folder / "shop.py").write_text(text)
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# here")), 0)


def check(text: str, line: int, mistake: dict[str, Any]) -> None:
    assert mistake["says"] in text
    assert OURS not in text
    if line:
        assert f'shop.py", line {line}' in text


def terminal_output(error: CommandError, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the terminal output for an error."""
    report(error)
    return capsys.readouterr().err


def test_list_contains_a_hundred_mistakes() -> None:
    assert len({each["what"] for each in TABLE}) == len(TABLE) >= 100


@at_stages("load")
def test_mistakes_stop_the_command_that_loads_the_file(
    folder: Path, mistake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    line = write_mistake(folder, mistake)
    with pytest.raises(CommandError) as caught:
        load("shop.py")
    check(terminal_output(caught.value, capsys), line, mistake)


@at_stages("warn")
def test_harmless_mistakes_warn_with_their_line(folder: Path, mistake: dict[str, Any]) -> None:
    line = write_mistake(folder, mistake)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load("shop.py")
    assert [(each.filename, each.lineno) for each in caught] == [(str(folder / "shop.py"), line)]
    assert mistake["says"] in str(caught[0].message)


@at_stages("start")
async def test_mistakes_stop_the_server_from_starting(
    folder: Path, mistake: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    line = write_mistake(folder, mistake)
    mcp = load("shop.py")
    with pytest.raises(CommandError) as caught, convert_start_errors(mcp.name):
        await mcp.start()
    check(terminal_output(caught.value, capsys), line, mistake)


@at_stages("call", "answer")
async def test_mistakes_in_a_call_are_reported(
    folder: Path, mistake: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    line = write_mistake(folder, mistake)
    mcp = load("shop.py")
    async with connect(mcp) as client:
        answer = ""
        try:
            answer = (await client.call("run", raise_on_error=False)).text
        except millstream.testing.ServerError as failure:
            answer = str(failure)
    if mistake["stage"] == "answer":
        check(answer, line, mistake)
        return
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "the server's log has the details" in answer.lower()
    assert mistake["says"] not in answer
    check(logging.Formatter().format(record), line, mistake)


COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()",
    "run",
]


@pytest.mark.server
@at_stages("command")
def test_mistakes_end_the_command(folder: Path, mistake: dict[str, Any]) -> None:
    line = write_mistake(folder, mistake)
    with socket.create_server(("127.0.0.1", 0)) as other:
        args = [each.format(taken=other.getsockname()[1]) for each in mistake["args"]]
        environment = {**os.environ, "NO_COLOR": "1", **mistake.get("environment", {})}
        done = subprocess.run(
            [*COMMAND, *args], capture_output=True, text=True, timeout=WAIT, cwd=folder, check=False, env=environment
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    check(done.stderr, line, mistake)


@pytest.mark.server
@at_stages("stdio")
async def test_output_of_tools_does_not_break_stdio(folder: Path, mistake: dict[str, Any]) -> None:
    """MCP 2025-11-25, transports."""
    write_mistake(folder, mistake)
    errors = folder / "errors.txt"
    (folder / "main.py").write_text("from shop import mcp\nmcp.run('stdio')\n")
    script = f"exec {sys.executable} main.py 2>{errors}"
    async with millstream.Client(["sh", "-c", script], timeout=WAIT) as client:
        assert (await client.call("run")).content == [millstream.Text("done")]
    assert mistake["says"] in errors.read_text("utf-8")
