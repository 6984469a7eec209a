import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from command_line import CliRunner, program
from patience import WAIT
from programs import needs
from terminal_world import Terminal, needs_tmux


def test_completion_scripts_contain_commands_and_options() -> None:
    for shell in ("bash", "zsh", "fish"):
        done = CliRunner().invoke(program("completion"), ["completion", shell])
        assert done.exit_code == 0, done.output
        assert all(word in done.stdout for word in ("millstream", "install", "rotate", "transport")), shell


@pytest.mark.server
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


def test_installation_says_what_an_empty_zshrc_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/zsh")
    monkeypatch.delenv("ZSH_CUSTOM", raising=False)
    install = ["completion", "--install"]
    assert "autoload -U compinit && compinit" in CliRunner().invoke(program("completion"), install).stdout
    with (tmp_path / ".zshrc").open("a") as rc:
        rc.write("autoload -U compinit && compinit\n")
    assert "compinit" not in CliRunner().invoke(program("completion"), install).stdout


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "PATH=$PWD/bin:$PATH; source ./millstream.bash"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PATH=$PWD/bin:$PATH PS1='$ '; fpath=($PWD $fpath); autoload -U compinit; compinit -u -d ./dump",
    ),
    "zsh with source": (
        ["zsh", "-f", "-i"],
        "PATH=$PWD/bin:$PATH PS1='$ '; autoload -U compinit; compinit -u -d ./dump; source ./millstream.zsh",
    ),
    "fish": (["fish", "--no-config", "-i"], "set -x PATH $PWD/bin $PATH; source ./millstream.fish"),
}
"""Shell -> how to start it, and what a person's files run."""
NAMES = {
    "bash": "millstream.bash",
    "zsh": "_my_millstream",
    "zsh with source": "millstream.zsh",
    "fish": "millstream.fish",
}
PROGRAM = """
from typing import Literal
from millstream import Server
mcp = Server("apple")
other = Server("other")

@mcp.tool
def weigh(kind: Literal["green", "red"] | None = None, organic: bool = False, crates: int = 1) -> int:
    "Weigh."
    return 1

@mcp.prompt
def weather() -> str:
    "Ask."
    return ""

@other.tool
def wash() -> None:
    "Wash."
"""


@pytest.fixture(params=[pytest.param(name, marks=needs(SHELLS[name][0][0])) for name in SHELLS])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """A shell with the completion script, in a folder with some files."""
    name: str = request.param
    script = CliRunner().invoke(program("completion"), ["completion", SHELLS[name][0][0]]).stdout
    (tmp_path / NAMES[name]).write_text(script, "utf-8")
    for each in ("servers.json", "other.txt", "two words.py", "folder/inside.py"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).touch()
    (tmp_path / "apple.py").write_text(PROGRAM)
    (tmp_path / "bin").mkdir()
    installed = Path(sys.executable).with_name("millstream")
    (tmp_path / "bin" / "millstream").symlink_to(installed)
    command, setup = SHELLS[name]
    with TemporaryDirectory() as short:
        opened = Terminal(Path(short) / "tmux")
        home = {"HOME": str(tmp_path), "PS1": "$ ", "INPUTRC": "/dev/null"}
        opened.start([shutil.which(command[0]) or "", *command[1:]], 100, 50, home, tmp_path)
        try:
            opened.type(f"{setup}; echo rea''dy")
            opened.until("ready")
            yield opened
        finally:
            opened.end()


@pytest.mark.server
@needs_tmux
def test_tab_completes_files_and_tools_in_each_shell(shell: Terminal) -> None:
    for number, (typed, wanted) in enumerate(
        [
            ("millstream run app", "run apple.py"),
            ("millstream dev app", "dev apple.py"),
            ("millstream list ./app", "list ./apple.py"),
            ("millstream install app", "install apple.py"),
            ("millstream doctor fol", "doctor folder/"),
            ("millstream call two", "call two\\ words.py"),
            ("millstream gateway ser", "gateway servers.json"),
            ("millstream run apple.py --auth-keys ser", "--auth-keys servers.json"),
            ("millstream run apple.py --env-file oth", "--env-file other.txt"),
            ("millstream call apple.py we", "call apple.py weigh"),
            ("millstream call apple.py:mcp we", "call apple.py:mcp weigh"),
            ("millstream call apple.py:other wa", "call apple.py:other wash"),
            ("millstream prompt apple.py wea", "prompt apple.py weather"),
            ("millstream call apple.py weigh --ti", "weigh --timeout"),
            ("millstream call apple.py weigh cr", "weigh crates="),
            ("millstream call apple.py weigh ki", "weigh kind="),
            ("millstream call apple.py weigh kind=g", "weigh kind=green"),
            ("millstream call apple.py weigh kind=red org", "kind=red organic="),
            ("millstream call apple.py weigh kind=red organic=t", "organic=true"),
            ("millstream call apple.py:mcp weigh kind=r", "weigh kind=red"),
            ("millstream install apple.py --client claude-", "--client claude-code"),
            ("millstream install apple.py --client js", "--client json"),
        ]
    ):
        shell.press("C-u")
        shell.type(f"echo ro''und {number}")
        shell.until(f"round {number}")
        shell.press("-l", typed)
        shell.press("Tab")
        shell.until(f"round {number}", wanted)
