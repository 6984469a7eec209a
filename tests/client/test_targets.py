import json
import re
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from cpu import DEAR_TEXT, check_linear, repeat
from millstream import Client, Server
from millstream._gateway.files.read import load_file
from millstream._http.client.url import parse_url
from millstream.client import ClientError
from millstream.client._applications import APPLICATIONS, ConfigurableApp, Launch
from millstream.client._endpoint import check_headers
from millstream.client._errors import TargetError
from millstream.client._targets import Place, Remote, find_server
from millstream.client._transports.stdio import Command
from patience import WAIT


def place(target: Any) -> Place:
    return find_server(target, env={}, cwd=None)


@for_each(
    ("text", "host", "port", "target"),
    [
        ("http://example.com", "example.com", 80, "/"),
        ("https://example.com/mcp?x=1#part", "example.com", 443, "/mcp?x=1"),
        ("http://[::1]:8000/mcp", "::1", 8000, "/mcp"),
        ("ws://localhost:9/ws", "localhost", 9, "/ws"),
        ("https://bücher.example/mcp", "xn--bcher-kva.example", 443, "/mcp"),
    ],
)
def test_url_targets_are_parsed(text: str, host: str, port: int, target: str) -> None:
    """RFC 3986."""
    found = place(text)
    assert isinstance(found, Remote)
    assert (found.url.host, found.url.port, found.url.target) == (host, port, target)
    assert parse_url(str(found.url)) == found.url


@for_each(
    ("target", "words"),
    [
        ("", "empty"),
        ("ftp://example.com", "isn't a server URL"),
        ("http://", "isn't a server URL"),
        ("http://exa mple.com", "control characters"),
        ("http://example.com/\r\nX: y", "control characters"),
        ("http://example.com\u00a0HTTP\u30001.1", "host contains spaces"),
        ("http://example.com:99999/", "isn't a valid URL"),
        ("http://me:secret@example.com/", "must not contain a user name or password"),
        ("localhost:8000/mcp", "write http://localhost:8000/mcp"),
        ("example.com/mcp", "write http://example.com/mcp"),
        ("nothing.py", "There is no file nothing.py"),
        ("'unclosed", "can't be parsed"),
        (Path("nothing.json"), "There is no file"),
        ({"servers": {}}, "has no servers"),
        ({"mcpServers": {"a": {}, "b": {}}}, "several servers: a, b"),
        (
            {"mcpServers": {"a": {}}},
            "'a' of the configuration needs a url, or a command with a list of args. It has: nothing.",
        ),
        ({"mcpServers": {"a": {"comand": "x"}}}, "It has: comand."),
        ({"mcpServers": {"a": []}}, "must be an object"),
        ([], "program and its arguments"),
        (7, "int isn't a server"),
    ],
)
def test_invalid_targets_are_explained(target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=re.escape(words)) as caught:
        place(target)
    assert "\n" not in str(caught.value)


def test_commands_are_split_like_a_shell() -> None:
    assert place("uvx 'my server' --flag") == Command(("uvx", "my server", "--flag"))
    assert place(["uvx", "my server"]) == Command(("uvx", "my server"))


def test_scripts_run_with_their_interpreter(tmp_path: Path) -> None:
    plain, ours, script = tmp_path / "plain.py", tmp_path / "ours.py", tmp_path / "s.mjs"
    plain.write_text("import mcp")
    ours.write_text("from millstream import Server\nmcp = Server('x')")
    script.write_text("")
    assert place(script) == Command(("node", str(script)))
    for file in (plain, ours):
        started = place(file)
        assert isinstance(started, Command)
        assert (started.argv[0], started.argv[-1]) == (sys.executable, str(file))


GREETER = """
from millstream import Server
mcp = Server("greeter")

@mcp.tool
def greet(name: str) -> str:
    return f"Hello, {name}"

mcp.run(transport="stdio")
"""
FILES_OF_OTHERS = [
    '{"servers": {"local": {"type": "stdio", "command": COMMAND, "args": ARGUMENTS}}}',
    '{"context_servers": {"local": {"command": {"path": COMMAND, "args": ARGUMENTS}}}}',
    '{\n// of Cursor\n"mcpServers": {"local": {"command": COMMAND, "args": ARGUMENTS}}}',
    '{"mcp": {"local": {"type": "local", "command": COMMAND, "args": ARGUMENTS}}}',
]


@for_each("application", [each for each in APPLICATIONS.values() if each.url and each.snippet is None])
def test_urls_that_install_writes_are_read(application: ConfigurableApp, tmp_path: Path) -> None:
    entry = application.entry("shop", Launch(url="https://shop.example/mcp", headers={"X-Key": "k"}))
    found = place({"mcpServers": {"shop": entry}})
    assert isinstance(found, Remote)
    assert (str(found.url), found.headers) == ("https://shop.example/mcp", {"X-Key": "k"})
    assert place(entry) == found
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({application.under: {"shop": entry}}))
    (shop,) = load_file(path).upstreams
    assert (shop.target, shop.headers) == ("https://shop.example/mcp", {"X-Key": "k"})


def test_configurations_list_their_servers(tmp_path: Path) -> None:
    given = {
        "mcpServers": {
            "files": {"command": "npx", "args": ["-y", "files", 3], "env": {"A": "1"}},
            "shop": {"type": "http", "url": "https://shop.example/mcp", "headers": {"X-Key": "k"}},
        }
    }
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps(given))
    assert place(f"{path}#files") == Command(("npx", "-y", "files", "3"), {"A": "1"})
    shop = place(f"{path}#shop")
    assert isinstance(shop, Remote)
    assert (str(shop.url), shop.headers) == ("https://shop.example/mcp", {"X-Key": "k"})
    with pytest.raises(TargetError, match="It has: files, shop"):
        place(f"{path}#other")
    for text in "{", "[" * 100_000:
        path.write_text(text)
        with pytest.raises(TargetError, match="isn't valid JSON"):
            place(path)


def test_configurations_that_cannot_be_read_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mcp.json"
    path.write_text("{}")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(TargetError, match="Permission denied"):
        place(path)


@pytest.mark.server
@for_each("text", FILES_OF_OTHERS, ids=lambda text: text.split('"')[1])
async def test_client_and_gateway_read_application_files_in_the_same_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "greet.py").write_text(GREETER)
    path = tmp_path / "settings.json"
    words = [sys.executable, str(tmp_path / "greet.py")]
    path.write_text(text.replace("COMMAND", json.dumps(words[0])).replace("ARGUMENTS", json.dumps(words[1:])))
    async with Client(path, timeout=WAIT) as client:
        for _ in range(2):
            assert (await client.call("local_greet", name="Ada")).text == "Hello, Ada"
    async with Client(f"{path}#local", timeout=WAIT) as client:
        assert (await client.call("greet", name="Ada")).text == "Hello, Ada"


@pytest.mark.server
async def test_servers_in_application_files_are_selected_by_name(tmp_path: Path) -> None:
    (tmp_path / "greet.py").write_text(GREETER)
    path = tmp_path / "settings.json"
    good = {"command": sys.executable, "args": [str(tmp_path / "greet.py")]}
    path.write_text(json.dumps({"servers": {"broken": {"command": "does-not-exist"}, "the local one": good}}))
    async with Client(f"{path}#the local one", timeout=WAIT) as client:
        assert (await client.call("greet", name="Ada")).text == "Hello, Ada"
    with pytest.raises(ClientError, match="It has: broken, the local one"):
        async with Client(f"{path}#other", timeout=WAIT):
            pass


def test_variables_in_configurations_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "k")
    monkeypatch.delenv("SHOP_HOST", raising=False)
    path = tmp_path / "mcp.json"
    files = {"command": "npx", "args": ["${workspaceFolder}/a", "$${B}"], "env": {"A": "${env:SHOP_KEY}", "N": 1}}
    shop = {"url": "https://${SHOP_HOST:-shop.example}/mcp", "headers": {"X-Key": "${SHOP_KEY}"}}
    bad = {"url": "https://shop.example/mcp", "headers": {"X-Key": "${SHOP_KEYS}"}}
    path.write_text(json.dumps({"mcpServers": {"files": files, "shop": shop, "bad": bad}}))
    assert place(f"{path}#files") == Command(("npx", f"{tmp_path}/a", "${B}"), {"A": "k", "N": "1"})
    found = place(f"{path}#shop")
    assert isinstance(found, Remote)
    assert (str(found.url), found.headers) == ("https://shop.example/mcp", {"X-Key": "k"})
    with pytest.raises(TargetError, match=r"'bad' of .*SHOP_KEYS isn't set \(did you mean SHOP_KEY\?\)"):
        place(f"{path}#bad")
    assert place({"command": "sh", "args": ["-c", "exit"]}) == Command(("sh", "-c", "exit"), {}, None)
    assert place({"mcpServers": {"files": {"command": "sh", "args": ["-c", "echo ${HOME}"]}}}) == Command(
        ("sh", "-c", "echo ${HOME}")
    )


def test_variables_in_ignored_members_need_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)
    path = tmp_path / "mcp.json"
    unset = "${SHOP_KEY}"
    entries = {
        "shop": {"url": "https://shop.example/mcp", "env": {"A": unset}, "cwd": unset, "envFile": unset},
        "files": {"command": "npx", "headers": {"A": unset}, "description": [unset], "com.example": {"a": unset}},
    }
    path.write_text(json.dumps({"mcpServers": entries}))
    assert place(f"{path}#files") == Command(("npx",))
    assert isinstance(place(f"{path}#shop"), Remote)
    files, shop = sorted(load_file(path).upstreams, key=lambda each: each.name)
    assert (files.target, shop.target, shop.env) == (["npx"], "https://shop.example/mcp", {})


def test_configured_environment_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    entry: dict[str, Any] = {"command": "npx", "envFile": "${workspaceFolder}/shop.env", "env": {"A": "1"}}
    path.write_text(json.dumps({"mcpServers": {"files": entry}}))
    with pytest.raises(TargetError, match=r"'files' of .*shop.env can't be read"):
        place(path)
    (tmp_path / "shop.env").write_text("A=0\nB='two words'\nC=3\n")
    assert find_server(path, env={"C": "4"}, cwd=None) == Command(("npx",), {"A": "1", "B": "two words", "C": "4"})
    entry["envFile"] = "shop.env"
    path.write_text(json.dumps({"mcpServers": {"files": entry}}))
    assert place(path) == Command(("npx",), {"A": "1", "B": "two words", "C": "3"})


def test_server_objects_are_targets() -> None:
    server = Server("x")
    assert place(server) is server


@for_each("headers", [{"X": "a\r\nY: b"}, {"X\n": "a"}, {"Host": "a"}, {"content-length": "1"}, {"X": "€"}, {"": "a"}])
def test_invalid_request_headers_are_rejected(headers: dict[str, str]) -> None:
    """RFC 9110 §5.5"""
    with pytest.raises(TargetError):
        check_headers(headers)


RAW = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "initialize":
        about = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        about["serverInfo"] = {"name": "raw", "version": "1"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": about}), flush=True)
    elif message["method"] == "tools/list":
        tools = {"tools": [{"name": "raw", "inputSchema": {"type": "object"}}]}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": tools}), flush=True)
    elif "id" in message:
        error = {"code": -32601, "message": "no"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
"""
FILES = {
    "base.py": "from millstream import Server\nmcp = Server('shop')\n",
    "shop.py": "from base import mcp\n@mcp.tool\ndef echo() -> str:\n    return 'hello'\n",
    "late.py": "def main():\n    from base import mcp\n    mcp.tool(late)\n    mcp.run('stdio')\n"
    "def late() -> str:\n    return 'x'\nif __name__ == '__main__':\n    main()\n",
    "raw.py": RAW,
}


@pytest.mark.server
@pytest.mark.parametrize(("file", "tool"), [("shop.py", "echo"), ("late.py", "late"), ("raw.py", "raw")])
async def test_files_are_loaded_and_programs_without_a_server_run(tmp_path: Path, file: str, tool: str) -> None:
    """The server can be another file's, and a program can speak the protocol by itself."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    async with Client(tmp_path / file) as client:
        assert [each.name for each in await client.tools()] == [tool]


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_hosts_are_read_in_linear_time(unit: str) -> None:
    numbers = count()  # `urlsplit` remembers URLs

    def parse(size: int) -> None:
        with pytest.raises(TargetError):
            parse_url(f"https://{next(numbers)}{repeat(unit, size)}")

    check_linear(parse, 5_000)
