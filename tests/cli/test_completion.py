"""``millstream completion``: commands, options and files, as the shells themselves complete them.

The rules are our choice; each test that needs a shell that isn't there says so.
"""

import json
import shutil
import subprocess
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from millstream._cli.commands.completion import Shell, commands, place, script
from millstream._cli.installing.applications import APPLICATIONS
from millstream._cli.program import program
from patience import WAIT

ALL = commands(get_command(program()))

ASKED = [
    (["in"], {"init", "install", "info"}),
    (["run", "--re"], {"--reload"}),
    (["run", "x.py", "--transport", ""], {"http", "stdio"}),
    (["install", "x.py", "--client", "c"], {"claude", "claude-code", "cursor", "codex"}),
    (["keys", "r"], {"revoke", "rotate"}),
    (["keys", "add", "--sc"], {"--scope"}),
    (["completion", "--in"], {"--install"}),
]


class _Later(StrEnum):
    http = "http"
    stdio = "stdio"


def test_choices_are_found_where_either_line_of_typer_keeps_them() -> None:
    """A fixed defect: 0.29 has no `type` any more, and `millstream completion` ended in a traceback."""
    option = SimpleNamespace(
        param_type_name="option", opts=["--transport"], secondary_opts=[], help="", is_flag=False,
        type_descriptor=SimpleNamespace(annotation=_Later),
    )  # fmt: skip
    top = commands(SimpleNamespace(params=[option], commands={}))[0]
    assert top.options[0].choices == ("http", "stdio")


@pytest.mark.parametrize(
    ("words", "wanted"), ASKED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bash_completes(words: list[str], wanted: set[str], tmp_path: Path) -> None:
    """With the function that the script defines."""
    (tmp_path / "script").write_text(script(Shell.bash, ALL), "utf-8")
    line = " ".join(json.dumps(word) for word in ["millstream", *words])
    ask = f'source "$0"; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _millstream; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", ask, str(tmp_path / "script")],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    assert set(done.stdout.split()) == wanted
    assert done.stderr == ""


def test_bash_leaves_files_to_itself(tmp_path: Path) -> None:
    """`-o default`: where nothing of ours fits, files do."""
    text = script(Shell.bash, ALL)
    assert "complete -o default -F _millstream millstream" in text
    (tmp_path / "script").write_text(text, "utf-8")
    ask = 'source "$0"; COMP_WORDS=(millstream run sho); COMP_CWORD=2; _millstream; echo "${#COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", ask, str(tmp_path / "script")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish isn't installed")
@pytest.mark.parametrize(
    ("words", "wanted"), ASKED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_fish_completes(words: list[str], wanted: set[str], tmp_path: Path) -> None:
    """As fish itself says."""
    (tmp_path / "script").write_text(script(Shell.fish, ALL), "utf-8")
    line = " ".join(["millstream", *words])
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {tmp_path}/script; complete -C {json.dumps(line)}"],
        capture_output=True, text=True, timeout=WAIT, check=True, cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert {each.split("\t")[0] for each in done.stdout.splitlines()} == wanted


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh isn't installed")
def test_zsh_reads_the_script_and_has_a_function_for_each_command(tmp_path: Path) -> None:
    """A whole shell with a terminal would be needed to see it complete: this sees that the script is right."""
    (tmp_path / "_millstream").write_text(script(Shell.zsh, ALL), "utf-8")
    ask = (
        "autoload -Uz compinit; compinit -u -D; _arguments() { print -r -- $# }; "
        "source $0/_millstream; print ${+functions[_millstream_keys_add]} ${+functions[_millstream_run]}"
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", ask, str(tmp_path)], capture_output=True, text=True, timeout=WAIT, check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "1 1"


def test_every_command_and_option_is_in_every_script() -> None:
    """Made from the program itself."""
    names = {each.name for each in ALL}
    assert {"run", "keys add", "completion", "install"} <= names
    for shell in Shell:
        text = script(shell, ALL)
        for each in ALL:
            for option in each.options:
                assert all(name.lstrip("-") in text for name in option.names), (shell, option.names)
    client = next(
        option for each in ALL if each.name == "install" for option in each.options if "--client" in option.names
    )
    assert set(APPLICATIONS) < set(client.choices)


@pytest.mark.parametrize("shell", list(Shell))
def test_the_script_can_be_put_where_the_shell_looks(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the shell that the person has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(program("completion"), ["completion", "--install"])
    assert done.exit_code == 0, done.output
    path, afterwards = place(shell, {}, tmp_path)
    assert path.read_text("utf-8") == script(shell, ALL)
    assert afterwards in done.stdout
