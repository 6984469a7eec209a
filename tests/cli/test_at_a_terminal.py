import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from patience import WAIT
from processes import ROOT, TEST_PATH, SharedServer, free_port, run_command, share_server
from programs import find_program, needs

TMUX = find_program("tmux")
pytestmark = [
    pytest.mark.server,
    needs("tmux"),
]
SHOP = ROOT / "tests" / "client" / "shop.py"
LINES = 50
ASKING = """
from millstream import Context, Server

mcp = Server("ask")


@mcp.tool
async def greet(ctx: Context) -> str:
    return f"Hello, {await ctx.elicit('Who are you?', {'type': 'object', 'properties': {'name': NAME}})}!"


NAME = {"type": "string", "title": "Your name"}
"""

DELETING = """
from millstream import Context, Server

mcp = Server("shop")


@mcp.tool
async def delete(ctx: Context) -> str:
    await ctx.elicit("Delete everything?", {"type": "object", "properties": {}})
    return "Deleted."
"""


class Screen:
    """One terminal in tmux."""

    def __init__(self, columns: int, folder: Path) -> None:
        self.columns = columns
        self._folder = folder
        self._socket = ""

    def tmux(self, *words: str) -> str:
        assert TMUX is not None
        done = subprocess.run(
            [TMUX, "-L", self._socket, "-f", "/dev/null", *words],
            capture_output=True,
            text=True,
            timeout=WAIT,
            check=False,
        )
        return done.stdout

    def start(self, *words: str, **variables: str) -> None:
        """Run a command whose last output stays on the screen.

        In bash, because other login shells would end at Ctrl-C with the command. On a new socket, because the last
        tmux server may still be ending.
        """
        self._socket = f"millstream-{uuid4().hex[:12]}"
        given = {"PYTHONPATH": TEST_PATH, "HOME": str(self._folder), "PATH": os.environ["PATH"], **variables}
        environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
        command = shlex.join([sys.executable, "-m", "millstream", *words])
        self.tmux(
            "new-session", "-d", "-x", str(self.columns), "-y", str(LINES), "-c", str(self._folder),
            "bash", "-c", f"env -u NO_COLOR -u COLUMNS {environment} {command}; echo ended with $?; sleep 600",
        )  # fmt: skip

    def seen(self, *, colors: bool = False) -> str:
        return self.tmux("capture-pane", "-p", *(["-e"] if colors else []))

    def until(self, what: str | Callable[[str], bool]) -> list[str]:
        """Return the lines of the screen once it shows this text."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            text = self.seen()
            if what in text if isinstance(what, str) else what(text):
                return text.rstrip().splitlines()
            time.sleep(0.05)
        raise AssertionError(f"never showed {what}:\n{self.seen()}")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture(params=[80, 120])
def screen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Screen]:
    opened = Screen(request.param, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Screen]:
    opened = Screen(80, tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(str(SHOP), port), tmp_path_factory.mktemp("shop")) as running:
        yield running


def framed(lines: list[str], columns: int) -> None:
    """Return whether every line of a frame has both borders, so nothing was wrapped."""
    inside = [line for line in lines if line.startswith(("│", "╭", "╰"))]
    assert inside
    assert {line[-1] for line in inside} <= {"│", "╮", "╯"}
    assert max(map(len, inside)) <= columns


def test_run_shows_a_panel_and_ends_with_ctrl_c(screen: Screen) -> None:
    port = free_port()
    screen.start("run", str(SHOP), "--port", str(port))
    lines = screen.until("Ctrl-C")
    framed(lines, screen.columns)
    assert any(f"http://127.0.0.1:{port}/mcp" in line for line in lines)
    screen.press("C-c")
    screen.until("ended with 0")


def test_errors_and_findings_wrap_between_words(narrow: Screen) -> None:
    narrow.start("run", str(SHOP), "--tls-key", "key.pem")
    lines = narrow.until("ended with")
    cause = next(number for number, line in enumerate(lines) if line.startswith("  Cause: "))
    assert lines[cause + 1].startswith(" " * len("  Cause: "))
    narrow.close()
    narrow.start("doctor", "http://127.0.0.1:1/mcp")
    lines = narrow.until("ended with")
    finding = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[finding + 1].startswith("      ")
    assert "\x1b[31mFAIL" in narrow.seen(colors=True)


def test_tool_errors_wrap_between_words(narrow: Screen) -> None:
    narrow.start("call", str(ROOT / "examples/hub.py"), "get_current_time", f"timezone={'Mars/Base ' * 12}")
    said = " ".join(narrow.until("ended with 1"))
    assert "Mars/Base " * 11 in said
    assert "M ars" not in said


def test_list_separates_names_and_types_and_does_not_split_words(narrow: Screen) -> None:
    narrow.start("list", str(ROOT / "examples/hub.py"))
    lines = narrow.until("ended with 0")
    row = next(number for number, line in enumerate(lines) if "multiply_numbers(" in line)
    assert lines[row].rstrip().endswith("stream: boolean=false)")
    assert lines[row + 1].strip().startswith("Multiply two numbers")
    colored = narrow.seen(colors=True)
    assert re.search(r"\x1b\[36m(?:\x1b\[\d+m)*multiply_numbers", colored)
    assert re.search(r"\x1b\[(?:0;)?2m(?:\x1b\[\d+m)*: boolean", colored)


def test_dev_waits_for_a_fix_and_shows_the_next_error(screen: Screen, tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text("from millstream import Server\n\nmcp = Server('shop'\n", "utf-8")
    port = free_port()
    screen.start("dev", "shop.py", "--no-open", "--port", str(port))
    lines = screen.until("Waiting for a change …")
    assert any("Correct line 3 of shop.py" in line for line in lines)
    program.write_text("from millstream import Server\n\nmcp = Server('shop')\n", "utf-8")
    lines = screen.until("Try your tools at")
    framed(lines, screen.columns)
    assert f"Try your tools at http://127.0.0.1:{port}/inspect" in lines
    program.write_text("from millstream import Server\n\nmcp = Sever('shop')\n", "utf-8")
    lines = screen.until("The restart failed")
    assert any("NameError: name 'Sever' is not defined" in line for line in lines)
    assert "Correct line 3 of shop.py" in "\n".join(lines).partition("Sever")[2]
    screen.press("C-c")
    screen.until("ended with 0")


def test_watch_prints_changes_at_a_terminal(screen: Screen, server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}/mcp"
    screen.start("watch", url, "shop://news")
    screen.until("Watching shop")
    subprocess.run(
        [sys.executable, "-m", "millstream", "call", url, "publish"], check=True, capture_output=True, timeout=WAIT
    )
    lines = screen.until("shop://news")
    assert lines[0] == "Watching shop (2026-07-28, streamable-http)."
    assert lines[1].split() == ["changed", "resource", "shop://news"]
    screen.press("C-c")
    screen.until("ended with 130")


def test_no_color_is_respected(narrow: Screen, server: SharedServer) -> None:
    """https://no-color.org"""
    narrow.start("info", f"http://127.0.0.1:{server.port()}/mcp", NO_COLOR="1")
    narrow.until("ended with 0")
    assert "\x1b[" not in narrow.seen(colors=True)


def test_install_shows_the_change_and_asks(narrow: Screen, tmp_path: Path) -> None:
    path = tmp_path / ".cursor" / "mcp.json"
    narrow.start("install", str(SHOP), "--client", "cursor")
    lines = narrow.until("Write this? [y/N]:")
    assert any(line.startswith('+    "shop": {') for line in lines)
    assert not path.exists()
    narrow.press("y", "Enter")
    lines = narrow.until("ended with 0")
    assert any(line.startswith("Added shop to Cursor.") for line in lines)
    assert path.exists()


def test_server_errors_are_one_sentence(narrow: Screen) -> None:
    narrow.start("list", f"http://127.0.0.1:{free_port()}/mcp")
    lines = narrow.until("ended with 3")
    assert lines[0].startswith("Error: There is no server at http://127.0.0.1:")
    assert len(lines) <= 3  # the sentence may take two


@pytest.mark.parametrize(("key", "end"), [("C-c", "ended with 130"), ("C-d", "ended with")])
def test_ctrl_c_and_ctrl_d_at_a_question_end_the_command(narrow: Screen, tmp_path: Path, key: str, end: str) -> None:
    (tmp_path / "ask.py").write_text(ASKING)
    narrow.start("call", "ask.py", "greet")
    narrow.until("Your name (may be empty):")
    narrow.press(key)
    lines = narrow.until(end)
    assert not any("Abort" in line or "couldn't answer" in line for line in lines)


def test_question_without_fields_waits_for_a_yes(narrow: Screen, tmp_path: Path) -> None:
    (tmp_path / "delete.py").write_text(DELETING)
    for typed, result in (("", "The user declined"), ("no", "The user declined"), ("yes", "Deleted.")):
        narrow.start("call", "delete.py", "delete")
        narrow.until("Accept (yes or no) [no]:")
        narrow.press(*typed, "Enter")
        assert result in " ".join(narrow.until("ended with"))
        narrow.tmux("kill-server")


@pytest.mark.parametrize("words", [("users", "add", "ada"), ("install", str(SHOP), "--client", "cursor")])
def test_ctrl_c_at_a_prompt_exits(narrow: Screen, words: tuple[str, ...]) -> None:
    narrow.start(*words)
    narrow.until(lambda text: "Password:" in text or "[y/N]:" in text)
    narrow.press("C-c")
    narrow.until("ended with 130")
