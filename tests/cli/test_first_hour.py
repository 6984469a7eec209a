import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import CliRunner
from millstream._cli.program import program
from millstream._cli.tables import fill_in
from millstream.client import Question
from patience import WAIT
from processes import free_port, run_command, run_server

START = [sys.executable, "-c", "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()"]
SHOP = """
from millstream import Server

mcp = Server("shop", auth={auth})


@mcp.tool
def order(isbn: str, copies: int = 1) -> dict[str, int]:
    \"\"\"Order copies.\"\"\"
    return {{"ordered": copies}}
"""


def at_terminal(*words: str, cwd: Path) -> str:
    """Return the output of a command on a terminal."""
    end, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    process = subprocess.Popen([*START, *words], cwd=cwd, env=environment, stdout=terminal, stdin=subprocess.DEVNULL)
    os.close(terminal)
    said = b""
    try:
        while piece := os.read(end, 4096):
            said += piece
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(end)
        process.wait(WAIT)
    return said.decode().replace("\r\n", "\n")


@pytest.mark.server
def test_terminals_get_colors_signatures_and_indented_json(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(auth=None))
    listed = at_terminal("list", "shop.py", cwd=tmp_path)
    assert "order(isbn, copies: integer=1)" in re.sub(r"\x1b\[[\d;]*m", "", listed)
    assert "\x1b[36morder" in listed
    called = at_terminal("call", "shop.py", "order", "isbn=1", cwd=tmp_path)
    assert re.sub(r"\x1b\[[\d;]*m", "", called) == '{\n  "ordered": 1\n}\n'
    assert "\x1b[36m" in called
    overview = at_terminal("--help", cwd=tmp_path)
    assert "╭─ Serve" in overview
    assert "\x1b[36m" in overview
    piped = subprocess.run(
        [*START, "call", "shop.py", "order", "isbn=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    assert piped.stdout == '{"ordered":1}\n'


@pytest.mark.server
def test_failed_start_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("from millstream import Server\nimport no_such_package")
    (tmp_path / "script.py").write_text("import no_such_package")
    for name in ("ours.py", "script.py"):
        done = subprocess.run(
            [*START, "list", name], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False
        )
        assert done.returncode == 3
        assert done.stderr.count("No module named 'no_such_package'") == 1


@pytest.mark.server
def test_stdio_servers_report_that_they_are_waiting_for_a_client(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP.format(auth=None))
    end, terminal = pty.openpty()
    command = [*START, "run", "shop.py", "--transport", "stdio"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        os.close(terminal)
        assert run.stderr is not None
        assert b"Waiting for an MCP client" in run.stderr.readline()
        os.close(end)
        run.terminate()


@pytest.mark.server
def test_auth_key_comes_from_option_or_variable(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP.format(auth='__import__("millstream.auth").auth.keys("secret-key-of-the-shop")')
    )
    port = free_port()
    with run_server(run_command(str(tmp_path / "shop.py"), port), port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}/mcp"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MCP_")}
        for words, variables, status in (
            ([], {}, 4),
            (["--auth", "secret-key-of-the-shop"], {}, 0),
            (["--auth", "Bearer secret-key-of-the-shop"], {}, 0),
            ([], {"MCP_SERVER_AUTH_KEY": "secret-key-of-the-shop"}, 0),
        ):
            done = subprocess.run(
                [*START, "list", url, *words],
                env=environment | variables,
                capture_output=True,
                timeout=WAIT,
                check=False,
            )
            assert done.returncode == status, done.stderr


def test_form_prompts_describe_the_expected_input() -> None:
    fields = {
        "sure": {"type": "boolean"},
        "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "copies": {"type": "integer", "title": "Copies"},
        "name": {"type": "string"},
    }
    question = Question(message="Order?", requested_schema={"properties": fields, "required": ["sure", "name"]})
    prompts: list[str] = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        return {"  sure": "yes", "  name": "Ada"}.get(prompt.partition(" (")[0].removesuffix(": "), "")

    assert fill_in("The server", question, read, prompts.append) == {"sure": True, "color": "red", "name": "Ada"}
    assert prompts == [
        "The server asks: Order?",
        "Type /no to decline.",
        "  sure (yes or no): ",
        "  color (one of: red, blue) [red]: ",
        "  Copies (a whole number; may be empty): ",
        "  name: ",
    ]


def test_form_without_fields_is_accepted_only_by_a_yes() -> None:
    for schema in ({"type": "object", "properties": {}}, {}, None, {"properties": []}):
        question = Question(message="Allow it?", requested_schema=schema)  # type: ignore[arg-type]
        for typed, answer in (("yes", {}), (" Y", {}), ("no", "decline"), ("", "decline"), ("/no", "decline")):
            assert fill_in("The server", question, lambda _, typed=typed: typed, len) == answer, (schema, typed)


def test_user_is_asked_again_after_an_invalid_answer() -> None:
    for typed, field, words in (
        ("x", {"type": "integer"}, "This must be an integer"),
        ("true", {"type": "integer"}, "This must be an integer"),
        ("maybe", {"type": "boolean"}, "This must be true or false"),
        ("red", {"type": "string", "enum": ["blue"]}, "blue"),
        ("red", {"type": "string", "oneOf": [{"const": "blue", "title": "Blue"}]}, "blue"),
        ("0", {"type": "integer", "minimum": 1}, ">= 1"),
        ("9", {"type": "number", "maximum": 5}, "<= 5"),
        ("a", {"type": "string", "minLength": 2}, "2"),
        ("abc", {"type": "string", "maxLength": 2}, "2"),
        ("red, sky\x1b", {"type": "array", "items": {"enum": ["red"]}}, "red"),
        ("", {"type": "string"}, "Please answer."),
    ):
        question = Question(
            message="Well?", requested_schema={"type": "object", "properties": {"a": field}, "required": ["a"]}
        )
        notes, lines = list[str](), iter((typed, "/no"))
        assert fill_in("The server", question, lambda _, lines=lines: next(lines), notes.append) == "decline"
        assert words in notes[-1], notes
        assert "\x1b" not in notes[-1]


@pytest.mark.server
def test_names_with_spaces_can_be_installed(tmp_path: Path) -> None:
    path = tmp_path / "shop.py"
    path.write_text(SHOP.format(auth=None))
    words = ["install", str(path), "--client", "json", "--name", "My Analytics Server"]
    done = CliRunner().invoke(program("install"), words)
    assert list(json.loads(done.stdout)["mcpServers"]) == ["My-Analytics-Server"]
    assert "My-Analytics-Server" in done.stderr
