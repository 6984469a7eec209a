import subprocess
from pathlib import Path

import pytest

from command_line import CliRunner, program
from patience import WAIT


def test_completion_scripts_contain_commands_and_options() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = CliRunner().invoke(program("completion"), ["completion", shell])
        assert done.exit_code == 0, done.output
        assert all(word in done.stdout for word in ("millstream", "install", "rotate", "transport")), shell


def test_bash_completes_commands_and_choices(tmp_path: Path) -> None:
    script = CliRunner().invoke(program("completion"), ["completion", "bash"]).stdout
    (tmp_path / "script").write_text(script, "utf-8")
    for words, wanted in ((["in"], {"init", "install", "info"}), (["run", "--re"], {"--reload"})):
        line = " ".join(f'"{word}"' for word in ["millstream", *words])
        ask = (
            f'source "$0"; COMP_WORDS=({line}); COMP_CWORD={len(words)}; '
            '$(complete -p millstream | sed "s/.*-F \\([^ ]*\\).*/\\1/") millstream; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", ask, str(tmp_path / "script")],
            capture_output=True, text=True, timeout=WAIT, check=True,
        )  # fmt: skip
        assert {word.strip() for word in done.stdout.split()} == wanted


def test_completion_script_can_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    done = CliRunner().invoke(program("completion"), ["completion", "--install"])
    assert done.exit_code == 0, done.output
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "millstream" in path.read_text("utf-8")]
    monkeypatch.setenv("SHELL", "/bin/other")
    assert CliRunner().invoke(program("completion"), ["completion"]).exit_code == 1
