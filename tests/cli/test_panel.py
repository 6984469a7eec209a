import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from millstream import Server, auth
from millstream._app.server_process import startup_message
from millstream._text import fit, fit_command
from millstream._transports.openapi import example_of

EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - shown, not bound


def shop() -> Server:
    server = Server("shop", version="1.2.3")

    @server.tool
    def order(isbn: str, copies: int = 1) -> str:
        """Order."""
        return f"{copies} of {isbn}"

    @server.resource("book://{isbn}")
    def book(isbn: str) -> str:
        """A book."""
        return isbn

    return server


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(server: Server, host: str = "127.0.0.1", width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    startup_message.draw(startup_message.facts(server.definition, host=host, port=8000), console)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_panel_shows_url_contents_and_next_step() -> None:
    text = drawn(shop())
    assert len(text.splitlines()) <= 14
    for part in ("shop", "1.2.3", "http://127.0.0.1:8000/mcp", "http://127.0.0.1:8000/sse", "1 tool", "1 template",
                 "Host and Origin checked", "Ctrl-C"):  # fmt: skip
        assert part in text
    assert "warning" not in text


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.server
def test_command_can_be_copied_from_a_narrow_terminal() -> None:
    assert drawn(shop(), width=62).splitlines()[-1] == "millstream call http://127.0.0.1:8000/mcp order isbn=hello"
    words = ["millstream", "call", "http://127.0.0.1:8000/mcp", "order", "isbn=hello"]
    for width in (20, 44, 60):
        lines = drawn(shop(), width=width).partition("server.\n")[2] or drawn(shop(), width=width)
        command = lines[lines.index("millstream call") :]
        done = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:-1] == words
        assert all(len(line) <= width for line in command.splitlines() if len(line.rstrip("\\").split()) > 1)


@pytest.mark.server
def test_words_with_spaces_stay_whole_in_a_broken_command() -> None:
    command = """call "$TOKEN" 'a b' --x='c "d" e' --header "A: b's" f"""
    for width in (10, 20, 40, 200):
        done = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {fit_command(command, width)}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\n")[:-1] == ["call", "", "a b", '--x=c "d" e', "--header", "A: b's", "f"]


def test_long_words_of_a_text_stay_whole() -> None:
    address = f"https://example.com/{'a' * 60}"
    assert fit("Fix: ", f"Open {address} now, please.", 30) == f"Fix: Open\n     {address}\n     now, please."


def test_command_is_found_without_an_activated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = Path(sys.executable).with_name("millstream")
    monkeypatch.chdir(tmp_path)
    assert f"{program} call" in drawn(shop(), width=300)
    monkeypatch.chdir(program.parent.parent)
    assert f"\n{program.parent.name}/millstream call" in drawn(shop(), width=300)


def test_command_signs_in_where_people_do(tmp_path: Path) -> None:
    url = "http://127.0.0.1:8000"
    login = auth.login_provider(url, allow=["*"], client_id="a", client_secret="b")
    for method, option in (
        (auth.issuer(url, users=login), " --login"),
        (auth.oidc(url, audience=f"{url}/mcp"), " --login"),
        (auth.keys("k" * 20), ' --auth "$MCP_SERVER_AUTH_KEY"'),
        ([auth.keys("k" * 20), auth.oidc(url, audience="a")], ' --auth "$MCP_SERVER_AUTH_KEY"'),
    ):
        told = startup_message.facts(Server("shop", auth=method).definition, host="127.0.0.1", port=8000)
        assert told.call == f"millstream list {url}/mcp{option}"


def test_panel_shows_each_page_as_an_address_the_start_page_first() -> None:
    text = drawn(Server("shop", serve="all"))
    pages = [line.split("http", 1)[1].split()[0] for line in text.splitlines() if "8000/" in line and "│" in line]
    names = ["mcp", "sse", "", "dashboard", "chat", "inspect", "docs"]
    assert pages == [f"://127.0.0.1:8000/{name}" for name in names]


@pytest.mark.parametrize(
    ("warned", "hosts"),
    [(True, (EVERY_ADDRESS, "::", "192.0.2.1", "mcp.local")), (False, ("127.0.0.1", "::1", "localhost"))],
)
def test_public_addresses_cause_a_warning(warned: bool, hosts: tuple[str, ...]) -> None:
    for host in hosts:
        assert ("no authentication" in " ".join(drawn(shop(), host).split())) is warned


def test_panel_lists_only_served_pages() -> None:
    server = Server("shop", serve="all").definition
    here = startup_message.facts(server, host="127.0.0.1", port=8000).pages
    assert [page.rsplit("/", 1)[1] for page in here] == ["", "dashboard", "chat", "inspect", "docs"]
    assert startup_message.facts(server, host=EVERY_ADDRESS, port=8000).pages == ["http://127.0.0.1:8000/docs"]


@pytest.mark.parametrize(("host", "url"), [(EVERY_ADDRESS, "http://127.0.0.1:8000/mcp"), ("::", "http://[::1]:8000/mcp"),
                                           ("::1", "http://[::1]:8000/mcp")])  # fmt: skip
def test_shown_address_can_be_opened(host: str, url: str) -> None:
    assert startup_message.facts(shop().definition, host=host, port=8000).url == url


@pytest.mark.parametrize(
    "methods",
    [
        lambda url: auth.issuer(url, users=auth.login_provider(url, allow=["*"], client_id="a", client_secret="b")),
        lambda url: auth.oidc(url, audience=f"{url}/mcp"),
        lambda url: auth.oidc(url, audience=["guid", f"{url}/mcp"], client_id="a"),
        lambda url: [auth.keys("k" * 20), auth.oidc(url, audience="guid", resource=f"{url}/mcp")],
    ],
)
def test_sign_in_at_another_port_is_pointed_out(methods: Any) -> None:
    told = startup_message.facts(
        Server("shop", auth=methods("http://localhost:8000")).definition, host="127.0.0.1", port=8001
    )
    assert "to http://localhost:8000 to sign in, but this server listens at http://127.0.0.1:8001" in told.warning
    for url, host, port in (
        ("http://localhost:8000", "127.0.0.1", 8000),
        ("https://mcp.example.com", "127.0.0.1", 8001),
    ):
        assert not startup_message.facts(Server("shop", auth=methods(url)).definition, host=host, port=port).warning
    assert not startup_message.facts(
        Server("shop", auth=auth.keys("k" * 20)).definition, host="127.0.0.1", port=1
    ).warning


def test_panel_lists_worker_processes() -> None:
    told = startup_message.facts(shop().definition, host="127.0.0.1", port=8000)
    output = io.StringIO()
    console = Console(file=output, width=100, color_system=None)
    startup_message.draw(msgspec.structs.replace(told, workers=[41, 42]), console)
    assert "2 (processes 41, 42)" in output.getvalue()
    assert "processes" not in drawn(shop())


def test_panel_is_one_log_record_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream")
    startup_message.show(startup_message.facts(shop().definition, host="127.0.0.1", port=8000), stream=io.StringIO())
    (record,) = caplog.records
    fields: dict[str, Any] = vars(record)
    assert (fields["url"], fields["counts"]["tools"]) == ("http://127.0.0.1:8000/mcp", 1)
    assert fields["curl"].startswith("curl ")


def test_warning_is_a_separate_log_record(caplog: pytest.LogCaptureFixture) -> None:
    startup_message.show(startup_message.facts(shop().definition, host=EVERY_ADDRESS, port=8000), stream=io.StringIO())
    assert [record.levelname for record in caplog.records if "authentication" in record.message] == ["WARNING"]


def test_terminals_get_the_panel() -> None:
    terminal = Terminal()
    startup_message.show(startup_message.facts(shop().definition, host="127.0.0.1", port=8000), stream=terminal)
    assert "╭" in terminal.getvalue()


def test_servers_without_tools_show_the_list_command() -> None:
    told = startup_message.facts(Server("empty").definition, host="127.0.0.1", port=8000)
    assert "tools/list" in told.curl
    assert told.call == "millstream list http://127.0.0.1:8000/mcp"
    assert "nothing yet" in drawn(Server("empty"))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": ["boolean", "null"]}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"const": 3}}, "required": ["a", "b"]},
    ],
)
def test_example_arguments_match_the_schema(schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(example_of(schema))


def test_panel_names_only_active_protections() -> None:
    server = Server("open")
    assert startup_message.protections(server.settings)[0] == "Host and Origin checked"
    for field, left in (("allowed_hosts", "Origin checked"), ("allowed_origins", "Host checked")):
        changed = {
            **{name: getattr(server.settings, name) for name in server.settings.__struct_fields__},
            field: ("*",),
        }
        assert startup_message.protections(type(server.settings)(**changed))[0] == left


def test_suggested_command_calls_a_visible_tool() -> None:
    server = Server("shop")
    server.tool(name="hidden", visible=lambda _: False)(lambda: "h")
    server.tool(name="off", enabled=False)(lambda: "o")
    server.tool(name="scoped", scopes={"books:write"})(lambda: "w")
    server.tool(name="seen")(lambda: "s")
    assert '"name":"seen"' in startup_message.facts(server.definition, host="127.0.0.1", port=8000).curl
