import inspect
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from command_line import Result, commands, options, overview, parameters, run_in_process
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream._cli.diagnosis import check_certificate
from millstream._cli.help import COMMANDS
from millstream._cli.program import MODULES
from millstream._http.client.url import parse_url
from millstream.client import ConnectFailed
from patience import WAIT
from processes import ROOT, TEST_PATH, SharedServer, free_port, run_command, run_server, share_server
from proxies import NEEDS_NGINX, nginx_site
from workers_world import run_workers

COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'millstream'; from millstream._cli import main; main()"]
SHOP = str(ROOT / "tests" / "client" / "shop.py")
OWN = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONPATH": TEST_PATH}


def run(*arguments: str, given: str = "") -> Result:
    """Run a command in this process. `start` and `at_terminal` give it its own."""
    with chdir(ROOT):
        done = run_in_process(*arguments, input=given, env=OWN)
    assert "\nTraceback" not in f"\n{done.stderr}", done.stderr  # that of the log of a server is indented
    return done


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in its own process."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=OWN, cwd=ROOT, timeout=WAIT, check=False
    )


def printed(*arguments: str, given: str = "") -> str:
    done = run(*arguments, given=given)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(printed(*arguments, "--json"))


def at_terminal(*arguments: str, columns: int = 80) -> str:
    """Return the output on a terminal of this width."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**OWN, "COLUMNS": str(columns)},
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
    except OSError:
        pass  # Linux ends a terminal like this
    process.wait(WAIT)
    os.close(ours)
    return seen.decode()


def test_overview_lists_every_command() -> None:
    named = {name for group in COMMANDS.values() for name in group} - {"help"}
    assert named == set(MODULES)
    assert {name.partition(" ")[0] for name, _ in commands()} == named
    for name in named:
        assert f"  {name} " in overview()
    assert max(map(len, overview().splitlines())) <= 80


SILENT = {"dev", "record", "completion", "run"}
"""They serve, or print a script."""


def test_every_command_has_json_output_and_an_example() -> None:
    for name, command in commands():
        if name.startswith("users"):  # keeps a file and prints sentences
            continue
        text = inspect.getdoc(command.default_command) or ""
        assert ("--json" in options(command)) is (name not in SILENT), name
        assert f"- `millstream {name}" in text or f'- `millstream call "millstream {name}' in text, name
        assert all(each.parameter.help for each in parameters(command)), name


@for_each(
    "name", ["call", "list", "read", "prompt", "watch", "chat", "info", "ping", "doctor", "tokens", "lock", "check"]
)
def test_server_commands_share_connection_options(name: str) -> None:
    shared = ["--header", "--auth", "--login", "--env", "--revision", "--timeout", "--json"]
    own = ["--tool"] * (name == "list")
    assert [each for each in options(dict(commands())[name]) if each not in own][-len(shared) :] == shared


@pytest.mark.server
def test_help_loads_no_command_line_library() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=True,
    )
    assert done.stdout == overview()
    names = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not names & {"asyncio", "httptools", "msgspec", "rich", "cyclopts"}
    assert len(done.stderr.splitlines()) <= 80, "modules, most of which are Python's own"


@pytest.mark.server
def test_client_commands_import_no_server() -> None:
    program = "import sys; sys.argv[1:] = ['list', 'http://127.0.0.1:1/mcp']\nfrom millstream._cli import main\n"
    check = "try: main()\nexcept SystemExit: print(*[n for n in sys.modules if n in ('millstream._app', 'uvicorn')])"
    done = subprocess.run(
        [sys.executable, "-c", program + check], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.server
class TestInAPipe:
    """Output for programs."""

    def test_list_prints_tab_separated_lines(self) -> None:
        lines = [line.split("\t") for line in printed("list", SHOP).splitlines()]
        assert ["tool", "order", "Order a book."] in lines
        assert ["template", "book://{isbn}", "One book."] in lines
        assert ["prompt", "pitch", "Praise a book."] in lines

    def test_list_prints_json_on_request(self) -> None:
        found = as_json("list", SHOP)
        assert set(found) == {"tools", "resources", "resourceTemplates", "prompts"}
        assert found["tools"][0]["inputSchema"]["type"] == "object"

    def test_list_shows_the_arguments_of_one_tool(self) -> None:
        assert [line.split("\t")[:2] for line in printed("list", SHOP, "--tool", "order").splitlines()] == [
            ["argument", "isbn="],
            ["argument", "copies="],
        ]
        assert as_json("list", SHOP, "--tool", "order")["required"] == ["isbn"]
        done = run("list", SHOP, "--tool", "ordr")
        assert (done.exit_code != 0, "Did you mean order?" in done.stderr) == (True, True)

    def test_list_shows_skills(self) -> None:
        everything = str(ROOT / "examples" / "everything.py")
        skill = "skill://pdf-processing/SKILL.md"
        assert f"skill\t{skill}\tExtract, fill, and assemble PDF documents." in printed("list", everything).splitlines()
        assert skill in [each["uri"] for each in as_json("list", everything)["skills"]]

    def test_call_converts_values_by_schema(self) -> None:
        assert json.loads(printed("call", SHOP, "order", "isbn=9780", "copies=2")) == {"isbn": "9780", "copies": 2}
        in_json = printed("call", SHOP, "order", '{"isbn": "a=b", "copies": 2}')
        assert json.loads(in_json) == {"isbn": "a=b", "copies": 2}
        result = as_json("call", SHOP, "count", "a=1", "b=2")
        assert (result["isError"], result["content"][0]["text"]) == (False, "3")

    def test_call_reads_json_from_standard_input(self) -> None:
        assert printed("call", SHOP, "count", "--input", "-", given='{"a": 1, "b": 2}') == "3\n"

    def test_progress_is_written_to_standard_error(self) -> None:
        done = run("call", SHOP, "slowly", "steps=2")
        assert (done.stdout, done.stderr) == ("done\n", "progress 1/2\nprogress 2/2\n")

    def test_read_and_prompt_print_text(self) -> None:
        assert printed("read", SHOP, "book://7") == "Book 7\n"
        assert printed("prompt", SHOP, "pitch", "title=Emma") == "user: Praise Emma, warm.\n"

    def test_read_writes_a_file(self, tmp_path: Path) -> None:
        target = tmp_path / "book"
        printed("read", SHOP, "book://7", "--output", str(target))
        assert target.read_bytes() == b"Book 7"

    def test_info_ping_and_tokens_print_numbers(self) -> None:
        about = as_json("info", SHOP)
        assert (about["name"], about["transport"]) == ("shop", "stdio")
        assert "version" not in about, "a fixed defect: a server without one had the version 0"
        assert len(as_json("ping", SHOP, "--count", "3", "--interval", "0")["ms"]) == 3
        costs = as_json("tokens", SHOP)
        assert costs["total"] == sum(tool["tokens"] for tool in costs["tools"]) + costs["instructions"]


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["list", "http://127.0.0.1:{port}/mcp"], 3, "There is no server at"),
        (["list", "no-such-program"], 3, "There is no program"),
        (["list", "REGION=x uvx server"], 3, "--env REGION=x"),
        (["list", "nothing.py"], 3, "There is no file"),
        (["call", SHOP, "fail"], 1, "Internal error"),
        (["call", SHOP, "nothing"], 1, "Error: "),
        (["call", SHOP, "order", "isbn"], 2, "NAME=VALUE"),
        (["call", SHOP, "order", "--input", "["], 2, "isn't JSON"),
        (["list", SHOP, "--header", "nothing"], 2, "Name: value"),
        (["list", SHOP, "--revision", "2020-01-01"], 3, "2025-11-25"),
        (["list"], 2, "Missing argument: SERVER."),
        (["lsit"], 2, 'Unknown command "lsit". Did you mean "list"?'),
    ],
)
def test_failed_command_prints_one_line_and_returns_a_status(arguments: list[str], status: int, words: str) -> None:
    done = run(*(word.replace("{port}", str(free_port())) for word in arguments))
    assert done.exit_code == status, done.stderr
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.server
@for_each("columns", [80, 120])
def test_tables_fit_the_terminal(columns: int) -> None:
    seen = at_terminal("list", SHOP, columns=columns)
    lines = seen.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert lines[0].split() == ["KIND", "NAME", "DESCRIPTION"]
    assert max(map(len, lines)) <= columns
    assert "\t" not in seen


@pytest.mark.server
def test_progress_bar_disappears_at_the_end() -> None:
    seen = at_terminal("call", SHOP, "slowly", "steps=2")
    assert "█" in seen
    assert seen.rstrip().endswith("done")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(lambda port: run_command(SHOP, port), tmp_path_factory.mktemp("shop")) as running:
        yield running


@pytest.mark.server
@for_each("revision", ["2025-11-25", "2026-07-28"])
def test_watch_fails_for_unknown_resources(server: SharedServer, revision: str) -> None:
    url = f"http://127.0.0.1:{server.port()}/mcp"
    done = run("watch", url, "shop://newz", "--count", "1", "--revision", revision)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: The server has no resource 'shop://newz'. Did you mean shop://news?\n"


@pytest.mark.server
def test_watch_prints_changes_as_they_happen(server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}/mcp"
    watching = subprocess.Popen(
        [*COMMAND, "watch", url, "shop://news", "--count", "1"], stdout=subprocess.PIPE, text=True, env=OWN, cwd=ROOT
    )
    assert watching.stdout is not None
    try:
        assert watching.stdout.readline().startswith("Watching shop")
        printed("call", url, "publish")
        assert watching.stdout.readline() == "changed\tresource\tshop://news\n"
        assert watching.wait(WAIT) == 0
    finally:
        watching.kill()
        watching.stdout.close()
        watching.wait()


@pytest.mark.server
def test_call_prints_structured_content_without_text(tmp_path: Path) -> None:
    path = tmp_path / "charts.py"
    path.write_text(
        "from millstream import Image, Server, ToolResult\nmcp = Server('charts')\n"
        "@mcp.tool\ndef chart() -> ToolResult:\n    return ToolResult([Image(b'GIF8', 'image/gif')], {'highest': 7})\n"
    )
    assert printed("call", str(path), "chart") == '[image/gif, 4 bytes]\n{"highest":7}\n'


@pytest.mark.server
def test_unknown_names_suggest_the_nearest() -> None:
    done = run("call", SHOP, "ordr")
    assert (done.exit_code, done.stderr) == (1, "Error: The server has no tool 'ordr'. Did you mean order?\n")
    done = run("prompt", SHOP, "zzz")
    assert done.exit_code == 1
    assert "The server has no prompt 'zzz'. It has: " in done.stderr


@pytest.mark.server
def test_questions_without_a_terminal_are_explained() -> None:
    done = run("call", SHOP, "deliver")
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: The server has a question for the user, but there's no terminal. Run this command in a terminal.\n",
    )


@pytest.mark.server
def test_printed_output_logs_and_tracebacks_from_a_file_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "failing.py"
    path.write_text(
        "from millstream import Server\nmcp = Server('failing')\n@mcp.tool\ndef boom() -> int:\n    return 1 // 0\n"
    )
    with path.open("a") as file:
        file.write("print('imported')\n")
    words = (
        "imported\n",
        "ZeroDivisionError",
        "incident",
        'failing.py", line 5, in boom',
        "Raise ToolError",
    )
    done = start("call", str(path), "boom")
    assert done.returncode == 1
    assert done.stdout == ""
    assert [each for each in words if each not in done.stderr] == []
    done = start("list", f"{path}:mcp")
    assert done.returncode == 0
    assert done.stderr.startswith("imported\n")


@pytest.mark.server
def test_doctor_suggests_the_setting_that_separates_callers() -> None:
    for revision, expected in (("2025-11-25", True), ("2026-07-28", False)):
        steps = as_json("doctor", SHOP, "--revision", revision)["steps"]
        assert any("per_session" in step["remedy"] for step in steps) is expected


@pytest.mark.server
def test_doctor_accepts_a_gateway_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    command = [sys.executable, "-m", "millstream", "run", SHOP, "--transport", "stdio"]
    for rule, tools in (("", "10 tools"), ('[policy]\ngroups = ["staff"]\n', "0 tools")):
        file.write_text(f'name = "front"\n{rule}\n[upstreams.shop]\ncommand = {json.dumps(command)}\n', "utf-8")
        checked = as_json("doctor", str(file))
        found = {step["name"]: step["found"] for step in checked["steps"]}
        assert found["protocol"].startswith("front uses ")
        assert found["offers"].startswith(tools)
        assert checked["ok"], "a caller who hasn't signed in may see nothing"


STRANGER = """
import asyncio
import mcp.types as types
from mcp.server import Server
from mcp.server.stdio import stdio_server

def tool(name, **schema):
    return types.Tool(name=name, inputSchema={"type": "object", **schema})

async def list_tools(ctx, params):
    nested = {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    either = [{"required": ["a"]}, {"required": ["b"]}]
    tools = [tool("find", anyOf=either), tool("add", oneOf=either), tool("move", allOf=either)]
    return types.ListToolsResult(tools=[*tools, tool("plain", properties=nested)])

async def main():
    server = Server("stranger", on_list_tools=list_tools)
    async with stdio_server() as (reader, writer):
        await server.run(reader, writer, server.create_initialization_options())

asyncio.run(main())
"""


@pytest.mark.server
def test_doctor_names_tools_whose_schemas_make_a_model_reject_all_tools(tmp_path: Path) -> None:
    file, program = tmp_path / "gateway.toml", tmp_path / "stranger.py"
    program.write_text(STRANGER)
    command = [sys.executable, str(program)]
    file.write_text(f"[upstreams.shop]\ncommand = {json.dumps(command)}\n", "utf-8")
    for target, prefix in ((str(file), "shop_"), (f"{sys.executable} {program}", "")):
        found = printed("doctor", target)
        (line,) = [each for each in found.splitlines() if each.startswith("warn  schemas:")]
        assert line.endswith(f"at the root: {prefix}find, {prefix}add, {prefix}move")
        assert "deny the tools in a policy" in found
    assert "schemas" not in [each["name"] for each in as_json("doctor", SHOP)["steps"]]


@pytest.mark.server
def test_lists_that_a_server_lacks_are_no_warning(tmp_path: Path) -> None:
    program, resources = (
        tmp_path / "stranger.py",
        "async def list_resources(*_): return types.ListResourcesResult(resources=[])\n",
    )
    handlers = "on_list_tools=list_tools, on_list_resources=list_resources"
    program.write_text(resources + STRANGER.replace("on_list_tools=list_tools", handlers))
    listed = run("list", f"{sys.executable} {program}")
    assert (listed.stdout.count("tool\t"), "Warning" in listed.stderr) == (4, False), listed.stderr


def finish_waiting(*words: str, signal: Path) -> tuple[int, str, str]:
    """Start the upstream once a command waits for it, and return the command's status and output."""
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=OWN, cwd=ROOT
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("Waiting for servers that are starting behind this gateway."):
                signal.touch()
                break
        out, errors = running.communicate(timeout=WAIT)
    return running.returncode, out, errors


@pytest.mark.server
def test_doctor_waits_for_upstreams_that_are_starting(tmp_path: Path) -> None:
    signal, program, gateway = (tmp_path / name for name in ("signal", "upstream.py", "gateway.toml"))
    program.write_text(UPSTREAM.format(signal=str(signal), fails=False))
    command = json.dumps([sys.executable, str(program)])
    gateway.write_text(f"[upstreams.slow]\ncommand = {command}\nstart_timeout = 0\n", "utf-8")
    status, out, errors = finish_waiting("doctor", str(gateway), signal=signal)
    assert (status, "upstream slow: ready" in out) == (0, True), errors


async def test_doctor_certificate_check_has_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = parse_url(f"https://127.0.0.1:{silent.getsockname()[1]}/mcp")
        with pytest.raises(ConnectFailed, match=r"sent no certificate within 0\.05 seconds\. Use http://"):
            await check_certificate(url, 0.05)


BUFFERING = """
server {{
    listen 80;
    location / {{
        proxy_pass http://127.0.0.1:{};
        proxy_set_header Host $http_host;
        proxy_buffering on;
        proxy_ignore_headers X-Accel-Buffering;
    }}
}}
"""


@NEEDS_NGINX
@pytest.mark.server
def test_doctor_detects_a_proxy_that_buffers_event_streams(server: SharedServer, tmp_path: Path) -> None:
    with nginx_site(tmp_path / "nginx", BUFFERING.format(server.port())) as port:
        found = json.loads(run("doctor", f"http://127.0.0.1:{port}/mcp", "--json").stdout)
    (step,) = [each for each in found["steps"] if each["name"] == "streams"]
    assert step["found"] == "an event stream was opened, but nothing arrived within 5 seconds"
    assert "proxy_buffering off" in step["remedy"]
    assert not found["ok"]


@pytest.mark.server
def test_doctor_names_a_store_that_a_file_cannot_reach(tmp_path: Path) -> None:
    gateway, port = tmp_path / "gateway.toml", free_port()
    gateway.write_text(f'store = "redis://127.0.0.1:{port}/0"\n[upstreams.shop]\ncommand = ["none"]\n', "utf-8")
    done = run("doctor", str(gateway), "--json")
    found = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert found["trouble"]["found"] == f"the store can't be reached: 127.0.0.1:{port}: nothing listens on that port"
    assert not found["offers"]["remedy"], "its only upstream fails, which another step says"
    assert done.exit_code != 0


@pytest.mark.server
@pytest.mark.parametrize("url", ["redis://user:12#34@127.0.0.1:1", "nats://tok/en@127.0.0.1:1", "nats://to?k@host"])
def test_doctor_takes_no_part_of_a_password_for_a_host(url: str, tmp_path: Path) -> None:
    gateway = tmp_path / "gateway.toml"
    gateway.write_text(f'store = "{url}"\n[upstreams.shop]\ncommand = ["none"]\n', "utf-8")
    done = run("doctor", str(gateway), "--json")
    assert '"protocol"' in done.stdout
    assert "can't be reached" not in done.stdout.partition('"upstream shop"')[0]


HIDING = """
server {{
    listen 80;
    location / {{
        proxy_pass http://127.0.0.1:{};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        {}
    }}
}}
"""
"""nginx from 1.29.7 on does this with only a `proxy_pass`."""


@NEEDS_NGINX
@pytest.mark.server
@pytest.mark.parametrize(("line", "ok"), [("", False), ("proxy_set_header X-Forwarded-For $remote_addr;", True)])
def test_doctor_reports_pages_that_a_proxy_opens_to_everybody(
    server: SharedServer, tmp_path: Path, line: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nginx_site(tmp_path / "nginx", HIDING.format(server.port(), line)) as port:
        monkeypatch.setitem(OWN, "HTTP_PROXY", f"http://127.0.0.1:{port}")
        found = json.loads(run("doctor", "http://mcp.example.com/mcp", "--json").stdout)
    assert found["ok"] == ok, found
    said = {step["name"]: step["found"] for step in found["steps"]}
    assert ("open to everybody" in said.get("private pages", "")) == (not ok), said


@pytest.mark.server
def test_doctor_reports_each_step(server: SharedServer) -> None:
    url = f"http://127.0.0.1:{server.port()}"
    well = as_json("doctor", f"{url}/mcp")
    assert [step["name"] for step in well["steps"]][:3] == ["name", "protocol", "offers"]
    assert well["ok"]
    found = {step["name"]: step["found"] for step in well["steps"]}
    name, offers, streams, browsers = (found[each] for each in ("name", "offers", "streams", "browsers"))
    assert streams == "the first message of an event stream arrived"
    assert name == "127.0.0.1 is already an address", "a fixed defect: 127.0.0.1 was 127.0.0.1"
    counted = {kind: len(each) for kind, each in as_json("list", f"{url}/mcp").items()}
    assert f" {counted['resourceTemplates']} template" in offers, "a fixed defect: templates were resources"
    assert browsers.startswith("preflight requests are refused"), "a fixed defect: they got no answer"
    done = run("doctor", f"{url}/nothing")
    assert done.exit_code == 3
    assert "FAIL  connection:" in done.stdout
    assert "Fix: Check the path" in done.stdout
    assert done.stdout.count("Check the path") == 1, "a fixed defect: the step said it, and so did its remedy"
    done = run("doctor", f"http://127.0.0.1:{free_port()}/mcp", "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["steps"][-1]["remedy"].startswith("Check the host and port")


TOKENS = """
import json, os
from millstream import Server, auth

keys = json.loads(os.environ["KEYS"])
mcp = Server("shop", auth=auth.jwt(issuer=os.environ["ISSUER"], audience=os.environ["AUDIENCE"], jwks=keys))
"""


ISSUING = """
import os
from millstream import Server, auth

login = auth.login_provider("https://login.example.com", allow=["ada@example.com"], client_id="a", client_secret="b")
mcp = Server("shop", auth=auth.issuer(os.environ["URL"], users=login))
"""


@pytest.mark.server
def test_doctor_follows_the_metadata_of_a_server_that_requires_sign_in(tmp_path: Path) -> None:
    """As a client without a token does, so that a wrong issuer is found before a user signs in."""

    def steps(url: str) -> dict[str, tuple[bool, str]]:
        done = run("doctor", url, "--json")
        assert done.exit_code != 0
        return {each["name"]: (each["ok"], each["found"]) for each in json.loads(done.stdout)["steps"]}

    (tmp_path / "issuing.py").write_text(ISSUING)
    (tmp_path / "tokens.py").write_text(TOKENS)
    port, other, dead = free_port(), free_port(), f"http://127.0.0.1:{free_port()}"
    url = f"http://127.0.0.1:{port}"
    with run_server(run_command(str(tmp_path / "issuing.py"), port), port, tmp_path / "log", URL=url):
        found = steps(f"{url}/mcp")
    assert found["metadata"] == (True, f"clients of {url}/mcp sign in at {url}")
    assert found["issuer"] == (True, f"{url} issues tokens at {url}/token")
    there = {"KEYS": json.dumps(key_set()), "ISSUER": dead, "AUDIENCE": f"http://127.0.0.1:{other}/mcp"}
    with run_server(run_command(str(tmp_path / "tokens.py"), other), other, tmp_path / "log", **there):
        found = steps(f"http://127.0.0.1:{other}/mcp")
    assert found["metadata"][0]
    assert found["issuer"] == (False, f"There is no server at {dead}: nothing listens on that port.")


@pytest.mark.server
def test_doctor_reports_why_a_token_is_rejected(tmp_path: Path) -> None:
    env = os.environ | {"KEYS": json.dumps(key_set()), "ISSUER": ISSUER, "AUDIENCE": AUDIENCE}
    with run_workers(tmp_path, 1, program=TOKENS, env=env) as served:
        for changes, reason in (
            ({"exp": 1}, "The token has expired"),
            ({"aud": "x"}, "The token is for another audience"),
        ):
            done = run("doctor", f"http://127.0.0.1:{served.port}/mcp", "--auth", token(claims(**changes)))
            assert done.exit_code != 0
            assert reason in " ".join(done.stdout.split())
        served.wait_for_line("Rejected a credential from 127.0.0.1. The token has expired.")


GATEWAY = """
import sys
from millstream import Server

mcp = Server("front")
mcp.upstream("slow", [sys.executable, {program!r}], start_timeout=0)
"""
UPSTREAM = """
import sys, time
from pathlib import Path
from millstream import Server

while not Path({signal!r}).exists():
    time.sleep(0.02)
mcp = Server("there")
if {fails}:
    sys.exit(1)

@mcp.tool
def order(copies: int = 1) -> str:
    return "done"

@mcp.resource("book://{{isbn}}")
def book(isbn: str) -> str:
    return "done"

@mcp.prompt
def pitch() -> str:
    return "done"

mcp.run()
"""


LISTED = [["tool", "slow_order"], ["template", "book://slow/{isbn}"], ["prompt", "slow_pitch"]]


@pytest.mark.server
@for_each("fails", [False, True])
def test_list_waits_for_upstreams_that_are_starting(tmp_path: Path, *, fails: bool) -> None:
    signal, program, gateway = (tmp_path / name for name in ("signal", "upstream.py", "gateway.py"))
    program.write_text(UPSTREAM.format(signal=str(signal), fails=fails))
    gateway.write_text(GATEWAY.format(program=str(program)))
    _, out, errors = finish_waiting("list", str(gateway), signal=signal)
    assert "Warning" not in errors
    assert [line.split("\t")[:2] for line in out.splitlines()] == ([] if fails else LISTED)


@pytest.mark.server
@for_each(
    "command",
    [
        "call GATEWAY slow_order copies=2",
        "call GATEWAY slow_order",
        "read GATEWAY book://slow/1",
        "prompt GATEWAY slow_pitch",
    ],
)
def test_commands_wait_for_the_upstream_that_has_the_item(tmp_path: Path, command: str) -> None:
    signal, program, gateway = (tmp_path / name for name in ("signal", "upstream.py", "gateway.py"))
    program.write_text(UPSTREAM.format(signal=str(signal), fails=False))
    gateway.write_text(GATEWAY.format(program=str(program)))
    words = [str(gateway) if word == "GATEWAY" else word for word in command.split()]
    status, out, errors = finish_waiting(*words, signal=signal)
    assert (status, "done" in out) == (0, True), errors


@pytest.mark.server
def test_call_does_not_wait_for_upstreams_without_the_tool(tmp_path: Path) -> None:
    program, gateway = tmp_path / "upstream.py", tmp_path / "gateway.py"
    program.write_text(UPSTREAM.format(signal=str(tmp_path / "never"), fails=False))
    gateway.write_text(GATEWAY.format(program=str(program)) + "mcp.tool(lambda: 'done', name='own')\n")
    done = start("call", str(gateway), "own")
    assert (done.stdout, "Waiting" in done.stderr) == ("done\n", False)


@pytest.mark.server
def test_list_reports_upstreams_that_do_not_start_in_time(tmp_path: Path) -> None:
    program, gateway = tmp_path / "upstream.py", tmp_path / "gateway.py"
    program.write_text(UPSTREAM.format(signal=str(tmp_path / "never"), fails=False))
    gateway.write_text(GATEWAY.format(program=str(program)))
    done = start("list", str(gateway), "--revision", "2025-11-25")
    assert "Warning: items are missing, because servers behind this gateway are starting." in done.stderr


MEDIA = """
from millstream import Audio, EmbeddedResource, Image, Server, ToolResult
mcp = Server("media")

@mcp.tool
def draw() -> ToolResult:
    blob = EmbeddedResource(uri="a://b", blob=b"blob")
    return ToolResult([Image(b"GIF8", "image/gif"), Audio(b"wave", "audio/wav"), blob], meta={"example.com/page": 3})

@mcp.tool
def say() -> str:
    return "hi"
"""


@pytest.mark.server
def test_media_of_a_call_are_saved_in_new_files_only(tmp_path: Path) -> None:
    (tmp_path / "media.py").write_text(MEDIA)
    server, picture = str(tmp_path / "media.py"), tmp_path / "picture.gif"
    done = run("call", server, "draw", "--output", str(picture))
    assert done.exit_code == 0
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("picture*")}
    assert saved == {"picture.gif": b"GIF8", "picture-2.gif": b"wave", "picture-3.gif": b"blob"}
    again = run("call", server, "draw", "-o", str(picture))
    assert (again.exit_code, again.stdout) == (2, "")
    assert f"{picture} already exists. Use another file: --output FILE" in again.stderr
    picture.unlink()
    (tmp_path / "picture-2.gif").write_bytes(b"mine")
    (tmp_path / "picture-3.gif").unlink()
    numbered = run("call", server, "draw", "-o", str(picture))
    assert numbered.exit_code == 0
    assert "[image/gif, 4 bytes]" in numbered.stdout
    saved = {path.name: path.read_bytes() for path in tmp_path.glob("picture*")}
    assert saved == {
        "picture.gif": b"GIF8",
        "picture-2.gif": b"mine",
        "picture-3.gif": b"wave",
        "picture-4.gif": b"blob",
    }
    nothing = run("call", server, "say", "-o", str(tmp_path / "text"))
    assert (nothing.exit_code, nothing.stdout) == (0, "hi\n")
    assert "no image or audio" in nothing.stderr
    assert "[image/gif, 4 bytes: save it with --output FILE]" in at_terminal("call", server, "draw")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("link", "link already exists. Use another file: --output FILE"),
        ("no/picture.gif", "There is no folder no. Create it, or use another file: --output FILE"),
        ("file/picture.gif", "There is no folder file. Create it, or use another file: --output FILE"),
    ],
)
def test_files_that_cannot_be_created_are_refused_before_the_call(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nothing")
    Path("file").touch()
    failed = run_in_process("call", "http://127.0.0.1:9/mcp", "draw", "--output", name)  # nothing listens there
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert message in failed.stderr


@pytest.mark.server
def test_json_of_a_call_has_the_metadata_of_the_result(tmp_path: Path) -> None:
    (tmp_path / "media.py").write_text(MEDIA)
    found = as_json("call", str(tmp_path / "media.py"), "draw")
    assert found["_meta"]["example.com/page"] == 3
    assert [each["type"] for each in found["content"]] == ["image", "audio", "resource"]
