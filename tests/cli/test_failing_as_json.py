import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import commands, options
from millstream.__main__ import main

NOWHERE = "http://127.0.0.1:9/mcp"
# What is typed -> the exit status, and a part of the sentence.
FAILURES: dict[str, tuple[int, str]] = {
    f"list {NOWHERE}": (3, "no server at"),
    f"call {NOWHERE} buy": (3, "no server at"),
    f"read {NOWHERE} book://7": (3, "no server at"),
    f"prompt {NOWHERE} review": (3, "no server at"),
    f"watch {NOWHERE}": (3, "no server at"),
    f"info {NOWHERE}": (3, "no server at"),
    f"ping {NOWHERE}": (3, "no server at"),
    f"tokens {NOWHERE}": (3, "no server at"),
    f"tasks {NOWHERE}": (3, "no server at"),
    f"lock {NOWHERE}": (3, "no server at"),
    f"check {NOWHERE}": (1, "no file millstream-lock.json"),
    "keys list --file no.json": (1, "no.json"),
    "keys change ada --file no.json": (1, "ada"),
    "keys revoke ada --file no.json": (1, "ada"),
    "keys rotate ada --file no.json": (1, "ada"),
    "keys add ada --file folder": (1, "folder"),
    "users list --file folder": (1, "folder"),
    "users add ada": (1, "no password"),
    "users change ada": (1, "ada"),
    "users remove ada": (1, "ada"),
    "users password ada": (1, "no password"),
    "audit verify no.jsonl": (1, "no.jsonl"),
    "gateway accept no.toml shop": (1, "no.toml can't be read"),
    "gateway add shop ftp://x": (1, "isn't a server URL"),
    "gateway remove shop --file no.toml": (1, "no file no.toml"),
    "install no.py --client claude": (1, "no file no.py"),
    "init taken": (1, "taken"),
    # Wrong use
    "list": (2, "SERVER"),
    "ping x.py --timeout 0": (2, "greater than 0"),
    f"call {NOWHERE} buy --input {{": (2, "--input isn't JSON"),
    "version --color": (2, "--color"),
    f"chat {NOWHERE} --rounds": (2, "--rounds"),
    "doctor": (2, "SERVER"),
    "keys ad ada": (2, "ad"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with an obstacle."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "empty").write_text("")
    with (tmp_path / "empty").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield tmp_path


@pytest.mark.parametrize("typed", FAILURES)
def test_json_failures_have_a_message_and_status(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, says = FAILURES[typed]
    monkeypatch.setattr(sys, "argv", ["millstream", *typed.split(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, error = capsys.readouterr()
    said: dict[str, Any] = json.loads(out)
    assert (said["ok"], said["status"], ended.value.code) == (False, status, status)
    assert says in said["error"]
    assert error == ""

    monkeypatch.setattr(sys, "argv", ["millstream", *typed.split()])
    with pytest.raises(SystemExit) as plainly:
        main()
    assert plainly.value.code == status


@pytest.mark.parametrize(("typed", "remedy"), [("list", "millstream list --help"), ("lost", "millstream --help")])
def test_usage_errors_mention_the_help(
    typed: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["millstream", typed, "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().out)["remedy"] == remedy


def test_every_command_with_json_is_in_the_table() -> None:
    ours = {"run", "dev"}  # their --json is about what the server answers
    own = {"chat", "doctor", "version"}  # these say it in their own objects, or can only be used wrongly
    found: set[str] = set()
    found.update(name for name, command in commands() if "--json" in options(command))
    tested = {name for name in found if any(f"{typed} ".startswith(f"{name} ") for typed in FAILURES)}
    assert found - tested - ours - own == set()
    assert found >= own
