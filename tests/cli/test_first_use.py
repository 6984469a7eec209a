import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cases import for_each
from client.certificates import self_signed
from command_line import CliRunner, overview
from millstream._app.server_process import CommandError
from millstream._cli.program import MODULES, program
from millstream.client import Client, ConnectFailed
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server

START = [sys.executable, "-m", "millstream"]
SHOP = str(ROOT / "tests" / "client" / "shop.py")
TWO = """
from millstream import Server
first, second = Server("first"), Server("second")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Run a command, and return its status, output, and errors."""
    if arguments[0] == "run":  # it would set up the logs of this process
        served = start(*arguments, stdout=subprocess.PIPE)
        return served.returncode, served.stdout.decode(), " ".join(served.stderr.decode().split())
    done = CliRunner().invoke(program(arguments[0]), list(arguments), input=typed)
    if isinstance(done.exception, CommandError):
        return 1, done.stdout, f"{done.exception.what} {done.exception.why} {done.exception.fix}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, " ".join(done.stderr.replace("│", " ").split())


def start(*arguments: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*START, *arguments], timeout=WAIT, check=False, stderr=subprocess.PIPE, **more)  # type: ignore[call-overload,no-any-return]  # as people give them


WRONG: list[tuple[list[str], int, str]] = [
    (["list", "sop.py"], 3, "There is no file sop.py. Did you mean shop.py?"),
    (
        ["list", "far/away.py"],
        3,
        "There is no file far/away.py. Check the path. It's relative to the current folder.",
    ),
    (["list", "my-shop"], 3, "There is no program 'my-shop'. Did you mean my-shop.py?"),
    (["list", "."], 3, ". is a folder. Use a .py, .js, or .json file in it, a command, or a URL."),
    (
        ["list", "gateway.toml"],
        3,
        "gateway.toml has no upstreams.",
    ),
    (["list", "x" * 5000], 3, "There is no program"),
    (["list", "plain.py:mcp"], 3, "There is no mcp in plain.py."),
    (["list", "http://127.0.0.1:x/mcp"], 3, "its port isn't a number from 0 to 65535."),
    (["list", "http://127.0.0.1:99999/mcp"], 3, "its port isn't a number from 0 to 65535."),
    (["list", "http://127.0.0.1:{port}/mcp"], 3, "nothing listens on that port. Check the host and port, and that the"),
    (["list", "wss://127.0.0.1:{port}/ws"], 3, "nothing listens on that port. Check the host and port, and that the"),
    (["ping", SHOP, "--timeout", "0"], 2, "--timeout must be greater than 0"),
    (["ping", SHOP, "--timeout", "nan"], 2, "nan isn't a finite number"),
    (["chat", SHOP, "-m", "x", "--timeout", "-1"], 2, "--timeout must be greater than 0"),
    (["ping", SHOP, "--interval", "inf"], 2, "inf isn't a finite number"),
    (["keys", "add", "ada", "--days", "nan"], 2, "nan isn't a finite number"),
    (["keys", "add", "ada", "--days", "1e300"], 2, "Must be <= 36500"),
    (["keys", "rotate", "ada", "--grace", "inf"], 2, "inf"),
    (["watch", SHOP, "--level", "loud"], 2, 'Choose from: "debug", "info"'),
    (["read", SHOP, "bok://7"], 1, "The server has no resource 'bok://7'. Did you mean book://"),
    (["read", SHOP, "book://7", "--output", "."], 1, ". can't be written: Is a directory. Use another file"),
    (["read", SHOP, "book://7", "--output", "far/away"], 1, "far/away can't be written: No such file or directory."),
    (["init", "shop.py"], 1, "shop.py is a file, not a folder."),
    (["install", "http://127.0.0.1/mcp", "--with", "x", "--client", "json"], 1, "can't be added to a server at a URL."),
    (["run", ""], 1, "'' isn't a file name."),
    (["run", "shop.py:"], 1, "'shop.py:' isn't a file name."),
    (["run", "shop.py", "--path", "/a b"], 1, "It must be a path that starts with /, without spaces, ?, or #."),
    (["run", "shop.py", "--path", "/a?b"], 1, "Correct the option, or leave it out."),
    (["run", "shop.py", "--host", "nowhere.invalid"], 1, "nowhere.invalid isn't an address on this machine."),
    (["chat", SHOP, "-m", "x", "--model", "m", "--api-url", "http://127.0.0.1:99999/v1"], 2, "isn't the URL of an API"),
    (["audit", "verify"], 2, "Missing argument: FILE."),
    (["keys", "add"], 2, "Missing argument: NAME."),
    (["version", "x"], 2, "Unexpected argument: x"),
]


@pytest.mark.server
@for_each(
    ("arguments", "status", "words"), WRONG, ids=lambda given: " ".join(given)[:40] if isinstance(given, list) else None
)
def test_errors_suggest_a_fix(arguments: list[str], status: int, words: str, here: Path) -> None:
    (here / "shop.py").write_text('from millstream import Server\nmcp = Server("shop")\n')
    (here / "my-shop.py").touch()
    (here / "plain.py").write_text("x = 1\n")
    (here / "gateway.toml").touch()
    code, out, error = run(*(each.replace("{port}", str(free_port())) for each in arguments))
    assert (code, out) == (status, ""), error
    assert words in error, error
    assert "[Errno" not in error
    assert "Traceback" not in error


@pytest.mark.server
@for_each("name", ["first", "second"])
def test_client_commands_select_one_of_several_servers(name: str, here: Path) -> None:
    (here / "two.py").write_text(TWO)
    for mark in ":#":
        assert json.loads(run("info", f"two.py{mark}{name}", "--json")[1])["name"] == name
    code, _, error = run("info", "two.py")
    assert code == 3
    assert "two.py has several servers: first, second." in error


@pytest.mark.server
def test_tls_servers_are_reached_over_wss(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    port = free_port()
    command = run_command(SHOP, port, "--serve", "hub", "--tls-cert", certificate, "--tls-key", key)
    with run_server(command, port, tmp_path / "log"):
        url = f"wss://localhost:{port}/ws"
        known = start("info", url, "--json", stdout=subprocess.PIPE, env={**os.environ, "SSL_CERT_FILE": certificate})
        strange = start("info", url, stdout=subprocess.PIPE)
    assert json.loads(known.stdout)["transport"] == "websocket", known.stderr
    assert strange.returncode == 3
    assert b"To trust your own certificate: SSL_CERT_FILE=FILE" in strange.stderr


@pytest.mark.server
def test_tls_key_without_a_certificate_prevents_startup() -> None:
    done = start("run", SHOP, "--tls-key", "key.pem", "--port", "0", stdout=subprocess.PIPE)
    assert done.returncode == 1
    assert b"The TLS certificate is missing." in done.stderr


@pytest.mark.server
def test_key_of_another_certificate_prevents_startup(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path)
    (tmp_path / "other").mkdir()
    _, key = self_signed(tmp_path / "other")
    done = start("run", SHOP, "--tls-cert", certificate, "--tls-key", key, "--port", "0", stdout=subprocess.PIPE)
    assert done.returncode == 1
    said = " ".join(done.stderr.decode().split())
    assert f"The key in {key} doesn't belong to the certificate in {certificate}." in said


@pytest.mark.server
def test_missing_template_resources_show_the_server_error(here: Path) -> None:
    (here / "shop.py").write_text(
        "from millstream import Server, ToolError\n"
        'mcp = Server("shop")\n'
        '@mcp.resource("book://{isbn}")\n'
        "def book(isbn: str) -> str:\n"
        '    raise ToolError("That book was stolen.")\n'
    )
    code, _, error = run("read", "shop.py", "book://7")
    assert code == 1
    assert "has no resource" not in error


@pytest.mark.server
def test_doctor_fails_for_empty_servers(here: Path) -> None:
    (here / "empty.py").write_text('from millstream import Server\nmcp = Server("empty")\n')
    code, out, _ = run("doctor", "empty.py", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["steps"][-1]["ok"]) == (1, False, False)


def test_doctor_suggests_a_fix_only_once() -> None:
    _, out, _ = run("doctor", f"http://127.0.0.1:{free_port()}/mcp")
    assert out.count("Check the host and port") == 1


@pytest.mark.server
@for_each("name", sorted(MODULES))
def test_every_command_has_help(name: str) -> None:
    shown = run(name, "-h")
    assert shown == run(name, "--help")
    assert shown[0] == 0


@pytest.mark.server
def test_command_groups_print_their_help() -> None:
    shown = [start("keys", *more, stdout=subprocess.PIPE) for more in ([], ["--help"])]
    assert shown[0].stdout == shown[1].stdout != b""


@pytest.mark.server
def test_help_is_wrapped_but_not_its_examples() -> None:
    blocks: set[str] = set()
    for columns, width in (("60", 60), ("", 80), ("0", 80)):
        env = {**os.environ, "COLUMNS": columns}
        shown = start("record", "--help", stdout=subprocess.PIPE, env=env).stdout.decode()
        before, heading, after = shown.partition("\nExamples\n")
        examples, _, after = after.partition("\n\n")
        blocks.add(heading + examples)
        assert width - 10 < max(map(len, f"{before}\n{after}".splitlines())) <= width
        assert "inspect._empty" not in shown
    assert len(blocks) == 1


@pytest.mark.server
def test_overview_fits_a_narrow_terminal() -> None:
    shown = start("help", stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "60"}).stdout.decode()
    assert [line for line in shown.splitlines() if len(line) > 60] == []


@pytest.mark.server
def test_help_accepts_a_command_name() -> None:
    shown = start("help", "keys", "add", stdout=subprocess.PIPE).stdout
    assert b"Usage: millstream keys add" in shown
    assert start("--help", "list", stdout=subprocess.PIPE).stdout.decode() == overview()
    unknown = start("help", "nothing", stdout=subprocess.PIPE)
    assert (unknown.returncode, unknown.stdout) == (2, b"")
    assert b'Unknown command "nothing"' in unknown.stderr


PRINTING = [["--help"], ["version"], ["list", "--help"], ["list", SHOP], ["completion", "bash"], ["doctor", SHOP]]


@pytest.mark.server
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@for_each("arguments", PRINTING, ids=" ".join)
def test_full_disk_error_is_one_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = start(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"Error: The output can't be written: No space left on device.\n"


@pytest.mark.server
@for_each("arguments", PRINTING, ids=" ".join)
def test_closed_pipe_ends_a_command_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = start(*arguments, stdout=writer)
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="closes the streams with a shell")
@for_each("arguments", PRINTING, ids=" ".join)
def test_closed_streams_are_tolerated(arguments: list[str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&- <&-', "sh", *START, *arguments], stderr=subprocess.PIPE, timeout=WAIT, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.server
def test_unencodable_characters_are_replaced_or_escaped(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text('from millstream import Server\nmcp = Server("Bücher")\n', "utf-8")
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert start("--help", stdout=subprocess.PIPE, env=plain).stdout.decode("ascii") == overview().replace("…", "?")
    assert start("list", "--help", stdout=subprocess.PIPE, env=plain).returncode == 0
    done = start("info", str(tmp_path / "shop.py"), "--json", stdout=subprocess.PIPE, env=plain)
    assert json.loads(done.stdout.decode("ascii"))["name"] == "Bücher"


@for_each("command", ["keys", "users"])
def test_piped_lists_are_tab_separated(command: str, here: Path) -> None:
    for name in ("ada", "Bob"):
        assert run(command, "add", name, "--scope", "orders", typed="correct horse battery\n")[0] == 0
    lines = run(command, "list")[1].splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["ada", "orders"], ["Bob", "orders"]]


async def test_library_errors_suggest_a_fix() -> None:
    with pytest.raises(ConnectFailed, match=r"nothing listens on that port\. Check the host and port") as raised:
        async with Client(f"http://127.0.0.1:{free_port()}/mcp"):
            pass
    assert raised.value.remedy == "Check the host and port, and that the server is running."


@pytest.mark.server
def test_help_shows_examples_that_can_be_pasted() -> None:
    for name in MODULES:
        text = run(name, "--help")[1]
        assert "`" not in text, name
        assert "**" not in text, name
        examples = text.partition("\nExample")[2].partition("\n\n")[0].partition("\n")[2]
        assert all(line.startswith("  ") and len(line) <= 80 for line in examples.splitlines()), examples
        for line in examples.replace("\\\n", "").splitlines():
            assert shlex.split(line, comments=True) or line.strip().startswith("#"), line
    assert len(run("run", "--help")[1].splitlines()) <= 80
