import json
import logging
import math
import os
import pty
import re
import select
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cases import for_each
from millstream import Server, Settings
from millstream._app.server_process import CommandError
from millstream._app.server_process.listen_sockets import listen
from millstream._app.server_process.over_http import run_program
from millstream._cli import main, plain_http, plain_stdio
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()"]
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "greet", "arguments": {"name": "Ann"}}}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


def run(*arguments: str, given: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], input=given, capture_output=True, text=True, timeout=WAIT, cwd=cwd, check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )  # fmt: skip


@for_each("option", ["--auth", "--auth-keys", "--tls-cert", "--tls-key"])
def test_empty_options_never_leave_a_server_unprotected(option: str) -> None:
    done = run("run", "examples/greet.py", option, "", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {option} is empty.")


def post(port: int, message: Any, path: str = "/mcp", **headers: str) -> tuple[dict[str, str], Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(message).encode(), {"content-type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=WAIT) as reply:  # noqa: S310 - our own server
        return dict(reply.headers), json.loads(reply.read())


def read_until(source: int, needle: bytes) -> bytes:
    """Return the output of a process up to the chunk that contains `needle`."""
    found = b""
    while needle not in found:
        ready, _, _ = select.select([source], [], [], WAIT)
        assert ready, f"nothing more after {found!r}"
        chunk = os.read(source, 65_536)
        assert chunk, f"ended after {found!r}"
        found += chunk
    return found


@contextmanager
def started(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the block."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, **streams)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=WAIT)


def texts(reply: Any) -> list[str]:
    return [block["text"] for block in reply["result"]["content"]]


def test_file_is_served_and_logged_as_json(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command("examples/greet.py", port), port, log):
        _, reply = post(port, CALL)
    assert texts(reply) == ["Hello, Ann!"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (told,) = [line for line in lines if line.get("url")]
    assert told["url"] == f"http://127.0.0.1:{port}/mcp"
    assert told["counts"] == {"tools": 1, "resources": 1, "templates": 0, "prompts": 1}
    assert "greet" in told["curl"]


def _wakes(process: int) -> int:
    """Return how often a process and its children have waited for events."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    status = Path(f"/proc/{process}/status").read_text()
    (own,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
    return int(own) + sum(_wakes(int(child)) for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's count is read from /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_idle_servers_do_not_wake_the_machine(tmp_path: Path, workers: int) -> None:
    port, counts = free_port(), list[int]()
    command = run_command("examples/greet.py", port, "--workers", str(workers))
    with run_server(command, port, tmp_path / "log") as process:
        post(port, CALL)
        while len(counts) < 10 and min(counts, default=math.inf) > 3 * workers:
            before = _wakes(process.pid)  # of the first second, what the start has left to do
            time.sleep(1)
            counts.append(_wakes(process.pid) - before)
    assert min(counts) <= 3 * workers, counts


def test_shown_command_works() -> None:
    with started(run_command("examples/hub.py", 0), stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        shown = read_until(process.stderr.fileno(), b'"curl"')
        (curl,) = [line["curl"] for line in map(json.loads, shown.splitlines()) if "curl" in line]
        done = subprocess.run(shlex.split(curl), capture_output=True, timeout=WAIT, check=True)
    assert texts(json.loads(done.stdout)) == ["2"]


def test_options_take_precedence_over_server_settings(tmp_path: Path) -> None:
    port = free_port()
    with run_server(
        run_command("examples/greet.py", port, "--no-sessions", "--path", "/tools"), port, tmp_path / "log"
    ):
        headers, reply = post(port, INITIALIZE, "/tools", accept="application/json, text/event-stream")
    assert reply["result"]["serverInfo"]["name"] == "Hello Server"
    assert "mcp-session-id" not in {name.lower() for name in headers}


def test_server_can_be_selected_by_name(tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command("examples/echo_math.py:math_server", port), port, tmp_path / "log"):
        _, reply = post(port, {**CALL, "params": {"name": "add_two", "arguments": {"n": 40}}})
    assert texts(reply) == ["42"]


def test_sigterm_shuts_down_cleanly(tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command("examples/greet.py", port), port, tmp_path / "log") as process:
        process.terminate()
        assert process.wait(WAIT) in (0, -15)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_failed_start_exits_with_1(tmp_path: Path) -> None:
    program = tmp_path / "shop.py"
    program.write_text(
        "from millstream import Server\nmcp = Server('shop')\n\n@mcp.complete('nothing', argument='x')\n"
        "def known(value: str, arguments: dict[str, str]) -> list[str]:\n    return []\n"
    )
    done = run("run", str(program), "--port", "0")
    assert "no such prompt or resource template" in done.stderr
    assert done.returncode == 1


def test_idle_server_stops_without_a_call_count() -> None:
    with started([*COMMAND, "run", "examples/greet.py", "--port", "0"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        read_until(process.stderr.fileno(), b"is serving")
        process.terminate()
        said = process.stderr.read()
    assert b'"Stopping. Press Ctrl-C again to stop immediately."' in said


def test_terminals_see_the_panel() -> None:
    port = free_port()
    ours, theirs = pty.openpty()
    with started(run_command("examples/hub.py", port), stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = read_until(ours, b"millstream call").decode()
        process.terminate()
        printed, _ = process.communicate(timeout=WAIT)
    os.close(ours)
    assert f"http://127.0.0.1:{port}/mcp" in shown
    assert "╭" in shown
    assert printed == b""


@for_each(
    "command",
    [
        [*COMMAND, "run", "examples/greet.py", "--transport", "stdio"],
        [*COMMAND, "run", "examples/greet.py", "--transport=stdio", "--log-level", "debug"],
        [*COMMAND, "run", "--port", "9", "--transport", "stdio", "examples/greet.py"],
        [sys.executable, "examples/greet.py"],
    ],
    ids=["plain", "equals", "with http options", "python"],
)
def test_stdio_stdout_contains_only_the_protocol(command: list[str]) -> None:
    given = "".join(f"{json.dumps(message)}\n" for message in (INITIALIZE, CALL))
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=WAIT, cwd=ROOT, check=False)
    replies = {reply["id"]: reply for reply in map(json.loads, done.stdout.splitlines())}
    assert replies[1]["result"]["protocolVersion"] == "2025-06-18"
    assert texts(replies[7]) == ["Hello, Ann!"]
    assert done.returncode == 0


def test_bookshop_works_over_stdio() -> None:
    done = run("run", "examples/bookshop.py", "--transport", "stdio", given=f"{json.dumps(INITIALIZE)}\n")
    assert json.loads(done.stdout)["result"]["serverInfo"]["name"] == "bookshop"


def test_port_in_use_suggests_the_next_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("run", "examples/greet.py", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: Port {port} on 127.0.0.1 is in use.")
    assert "--port" in done.stderr
    assert done.stdout == ""


@for_each("command", [("dev",), ("run", "--workers", "2")], ids=" ".join)
def test_missing_file_is_reported_before_a_used_port(command: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(*command, "nosuch.py", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no file nosuch.py.")


@for_each(
    ("arguments", "status", "said"),
    [
        (("run", "nosuch.py"), 1, "There is no file nosuch.py."),
        (("run", "nosuch.py", "--transport", "stdio"), 1, "There is no file nosuch.py."),
        (("run", "examples/echo_math.py"), 1, "echo_server, math_server"),
        (("run", "examples/greet.py", "--port", "70000"), 1, "70000 isn't a valid port."),
        (("run", "examples/greet.py", "--host", "192.0.2.1"), 1, "Can't listen on 192.0.2.1"),
        (("run", "examples/greet.py", "--host", "not a host"), 1, "not a host isn't an address"),
        (("run", "examples/greet.py", "--transport", "smoke"), 2, "smoke"),
        (("run", "examples/greet.py", "--transport", "stdio", "--log-level", "loud"), 2, "loud"),
        (("run",), 2, "FILE"),
        (("jump",), 2, "jump"),
    ],
)
def test_errors_are_printed_without_a_traceback(arguments: tuple[str, ...], status: int, said: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_shows_examples() -> None:
    done = run("run", "--help")
    assert done.returncode == 0
    for part in ("millstream run shop.py:admin", "--transport", "--no-sessions", "MILLSTREAM_"):
        assert part in done.stdout
    assert run("--version").stdout.startswith("millstream ")


@for_each(
    ("arguments", "plain"),
    [
        (["run", "shop.py", "--transport", "stdio"], ("shop.py", "")),
        (["run", "--transport=stdio", "shop:mcp", "--log-level=error"], ("shop:mcp", "error")),
        (["run", "shop.py"], None),
        (["run", "shop.py", "--transport", "http"], None),
        (["run", "shop.py", "--transport", "stdio", "--help"], None),
        (["run", "--help", "--transport", "stdio"], None),
        (["run", "shop.py", "--transport", "stdio", "--log-level", "loud"], None),
        (["run", "--transport"], None),
        (["run", "shop.py", "--transport", "stdio", "--log-level"], None),
        (["dev", "shop.py", "--transport", "stdio"], None),
        ([], None),
    ],
)
def test_plain_stdio_command_skips_the_command_line_library(
    arguments: list[str], plain: tuple[str, str] | None
) -> None:
    assert plain_stdio(arguments) == plain


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        ("run shop.py", ("shop.py", None, None, {})),
        ("run shop.py --port 9000", ("shop.py", None, 9000, {})),
        ("run -p 0 shop.py --host=0.0.0.0", ("shop.py", "0.0.0.0", 0, {})),  # noqa: S104  it isn't opened
        ("run shop.py --log-level debug", ("shop.py", None, None, {"settings": {"log_level": "debug"}})),
        ("run shop.py --workers 2", ("shop.py", None, None, {"workers": 2})),
        ("run shop.py --serve=hub,web", ("shop.py", None, None, {"serve": "hub,web"})),
        ("run --store redis://cache shop.py", ("shop.py", None, None, {"store": "redis://cache"})),
        ("run shop.py --workers 0", None),
        ("run shop.py --workers 1001", None),
        ("run shop.py --workers many", None),
        ("run shop.py --serve", None),
        ("run shop.py --serve --workers 2", None),
        ("run shop.py --store=", None),
        ("run shop.py --log-level critical", None),
        ("run shop.py --port http", None),
        ("run shop.py --port", None),
        ("run shop.py --port 1 --port 2", None),
        ("run shop.py --host=", None),
        ("run shop.py --path /api", None),
        ("run shop.py other.py", None),
        ("run --help", None),
        ("run", None),
        ("dev shop.py", None),
    ],
)
def test_plain_http_command_skips_the_command_line_library(
    words: str, plain: tuple[str, str | None, int | None, dict[str, object]] | None
) -> None:
    if plain is not None:
        defaults: dict[str, object] = {"workers": 1, "serve": "", "store": "", "settings": {"log_level": None}}
        plain = (*plain[:3], defaults | plain[3])
    assert plain_http(words.split()) == plain


def test_interrupt_before_serving_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("millstream._cli.serve_stdio", interrupted)
    monkeypatch.setattr(sys, "argv", ["millstream", "run", "x.py", "--transport", "stdio"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130


@for_each("command", ["run", "gateway"])
def test_options_without_effect_on_stdio_are_reported(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[str] = []
    monkeypatch.setattr("millstream._cli.run.serve_stdio", lambda target, *_, **__: served.append(target))
    (tmp_path / "servers.json").write_text('{"mcpServers": {}}')
    words = [
        "--transport",
        "stdio",
        "--log-level",
        "error",
        "--port",
        "0",
        "--auth-keys",
        "team.keys",
        "--serve",
        "hub",
    ]
    monkeypatch.setattr(sys, "argv", ["millstream", command, str(tmp_path / "servers.json"), *words])
    main()
    warnings = re.findall("Warning: (--[a-z-]+) has no effect with --transport stdio[.]", capsys.readouterr().err)
    assert (sorted(warnings), len(served)) == (["--auth-keys", "--port", "--serve"], 1)


def test_omitted_options_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Server] = []
    bound: Any = lambda server, host, port, **_: SimpleNamespace(run=lambda: served.append(server))  # noqa: E731
    monkeypatch.setattr("millstream._cli.serve.bind_address", bound)
    monkeypatch.setattr("millstream._telemetry.logs.configure", lambda *_, **__: None)
    for options in (
        (),
        ("--no-sessions", "--json-response", "--path", "tools/", "--log-level", "error", "--serve", "metrics"),
    ):
        monkeypatch.setattr(sys, "argv", ["millstream", "run", str(ROOT / "examples" / "greet.py"), *options])
        main()
    plain, changed = (server.definition for server in served)
    assert (plain.settings, plain.parts) == (Settings(), frozenset())
    settings = changed.settings
    assert settings.sessions is False
    assert settings.json_only is True
    assert settings.path == "/tools"
    assert settings.log_level == "error"
    assert changed.parts == {"metrics"}


def test_port_zero_selects_a_free_port() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


def test_privileged_ports_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refused)
    with pytest.raises(CommandError, match="Port 80 isn't allowed"):
        listen("127.0.0.1", 80)


def test_programs_that_call_run_get_the_same_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    with pytest.raises(SystemExit):
        run_program(Server("shop"), "127.0.0.1", 70_000)
    assert "70000 isn't a valid port" in capsys.readouterr().err


SHOP = """
import resource
from millstream import Server, Settings

resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
mcp = Server("shop", settings=Settings(max_connections=200))
"""
REQUEST = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def write_program(folder: Path, hard: int) -> str:
    file = folder / "shop.py"
    file.write_text(SHOP.format(hard=hard))
    return str(file)


def test_low_file_limit_is_raised_for_the_connections(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command(write_program(tmp_path, 4_096), port), port, log), ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT)) for _ in range(150)]
        for each in clients:
            each.sendall(REQUEST)
            assert each.recv(12) == b"HTTP/1.1 200"
        assert "ulimit" not in log.read_text()


def test_file_limit_that_cannot_be_raised_is_logged(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with run_server(run_command(write_program(tmp_path, 64), port), port, log):
        assert "can open only 64 files" in log.read_text()


def test_upstreams_that_may_need_more_files_are_logged_once(tmp_path: Path) -> None:
    file, port, log = tmp_path / "shop.py", free_port(), tmp_path / "log"
    upstreams = "".join(
        f'mcp.upstream("{name}", "http://127.0.0.1:1/mcp", max_connections=40, start_timeout=0)\n' for name in "ab"
    )
    file.write_text(SHOP.format(hard=64).replace("max_connections=200", "max_connections=20") + upstreams)
    with run_server(run_command(str(file), port), port, log):
        assert log.read_text().count("max_connections of all upstreams is 80 in total") == 1
        assert "closes new connections" not in log.read_text()
