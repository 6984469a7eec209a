import json
import re
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cases import for_each
from command_line import CliRunner, Result
from millstream._app.server_process import CommandError
from millstream._cli import install as command
from millstream._cli.program import program
from millstream.client._applications import APPLICATIONS, System
from millstream.client._targets import find_server
from millstream.client._transports.stdio import Command

SHOP = Path(__file__).resolve().parents[1] / "client" / "shop.py"
PROGRAM = str(Path(sys.executable).with_name("millstream"))
ARGS = ["run", str(SHOP), "--transport", "stdio"]
LOCAL = {"command": PROGRAM, "args": ARGS}
URL = "https://example.com/mcp"
BEARER = {"Authorization": "Bearer k"}
VIA_REMOTE = {
    "command": "npx",
    "args": ["-y", "mcp-remote", URL, "--header", "Authorization:${MCP_HEADER_0}"],
    "env": {"MCP_HEADER_0": "Bearer k"},
}

PLACES = {
    "claude": (
        ".config/Claude/claude_desktop_config.json",
        "Library/Application Support/Claude/claude_desktop_config.json",
        "AppData/Roaming/Claude/claude_desktop_config.json",
    ),
    "claude-code": (".claude.json",) * 3,
    "cursor": (".cursor/mcp.json",) * 3,
    "vscode": (
        ".config/Code/User/mcp.json",
        "Library/Application Support/Code/User/mcp.json",
        "AppData/Roaming/Code/User/mcp.json",
    ),
    "windsurf": (".codeium/windsurf/mcp_config.json",) * 3,
    "devin": (
        ".config/devin/mcp_config.json",
        ".config/devin/mcp_config.json",
        "AppData/Roaming/devin/mcp_config.json",
    ),
    "zed": (".config/zed/settings.json", ".config/zed/settings.json", "AppData/Roaming/Zed/settings.json"),
    "goose": (
        ".config/goose/config.yaml",
        ".config/goose/config.yaml",
        "AppData/Roaming/Block/goose/config/config.yaml",
    ),
    "gemini": (".gemini/settings.json",) * 3,
    "codex": (".codex/config.toml",) * 3,
}
"""Below the home of a person: on Linux, macOS and Windows."""

BEFORE = {
    "claude": '{\n  "globalShortcut": "",\n  "mcpServers": {\n    "files": {\n      "command": "npx"\n    }\n  }\n}\n',
    "claude-code": '{\n  "numStartups": 7,\n  "mcpServers": {},\n  "projects": {\n    "/a": {"history": []}\n  }\n}',
    "cursor": '{"mcpServers":{"other":{"url":"https://example.com/other"}}}',
    "vscode": '// mine\n{\n\t"inputs": [],\n\t"servers": {\n\t\t"old": { "type": "http", "url": "u" }, // 1\n\t}\n}\n',
    "windsurf": '{\r\n  "mcpServers": {\r\n    "other": {\r\n      "serverUrl": "u"\r\n    }\r\n  }\r\n}\r\n',
    "devin": '{\n  "mcpServers": {\n    "other": {\n      "url": "u",\n      "transport": "sse"\n    }\n  }\n}\n',
    "zed": '// Zed settings\n{\n  "theme": "One Dark", // dark\n  "vim_mode": true,\n}\n',
    "gemini": '{\n  "theme": "GitHub",\n  "mcpServers": {\n    "other": {\n      "httpUrl": "u"\n    }\n  }\n}\n',
}
ENTRIES = {
    "claude": (LOCAL, VIA_REMOTE),
    "claude-code": ({"type": "stdio", **LOCAL}, {"type": "http", "url": URL, "headers": BEARER}),
    "cursor": ({"type": "stdio", **LOCAL}, {"url": URL, "headers": BEARER}),
    "vscode": ({"type": "stdio", **LOCAL}, {"type": "http", "url": URL, "headers": BEARER}),
    "windsurf": (LOCAL, {"serverUrl": URL, "headers": BEARER}),
    "devin": (LOCAL, {"transport": "http", "url": URL, "headers": BEARER}),
    "zed": (LOCAL, {"url": URL, "headers": BEARER}),
    "goose": (
        {"name": "shop", "type": "stdio", "enabled": True, "cmd": PROGRAM, "args": ARGS, "envs": {}, "timeout": 300},
        {"name": "shop", "type": "streamable_http", "enabled": True, "uri": URL, "headers": BEARER, "timeout": 300},
    ),
    "gemini": (LOCAL, {"httpUrl": URL, "headers": BEARER}),
    "codex": (LOCAL, {"url": URL, "http_headers": BEARER}),
}
"""How each writes a server in a file, and one at a URL."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home on Linux."""
    system = System(kind="linux", home=tmp_path)
    monkeypatch.setattr(command, "system_here", lambda: system)
    return tmp_path


def install(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(program("install"), ["install", *arguments], input=given)


def written(key: str, text: str) -> Any:
    """Return the entry in an application's file."""
    return command_value(text)[APPLICATIONS[key].under]["shop"]


def command_value(text: str) -> Any:
    from millstream import _jsonc as jsonc  # noqa: PLC0415 - what the applications read, comments aside

    return jsonc.read(text).value


@pytest.mark.server
@pytest.mark.parametrize("key", BEFORE)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["linux", "macos", "windows"])
def test_install_writes_the_entry_into_json_files(
    key: str, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System(kind=("linux", "macos", "windows")[place], home=tmp_path)
    monkeypatch.setattr(command, "system_here", lambda: system)
    path = tmp_path / PLACES[key][place]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BEFORE[key].encode())
    for target, wanted in ((str(SHOP), ENTRIES[key][0]), (URL, ENTRIES[key][1])):
        more = ["--header", "Authorization: Bearer k"] if target == URL else []
        done = install(target, "--client", key, "--name", "shop", "--yes", *more)
        assert done.exit_code == 0, done.output
        text = path.read_bytes().decode()
        assert written(key, text) == wanted
        rest = iter(text)
        assert all(letter in rest for letter in BEFORE[key]), "something of the file is gone, or in another order"
        assert install(str(SHOP), "--client", key, "--name", "shop", "--undo", "--yes").exit_code == 0
        assert path.read_bytes().decode() == BEFORE[key]
        assert [each.name for each in path.parent.iterdir() if "before" in each.name] == []


@pytest.mark.server
@for_each("key", BEFORE)
def test_missing_folders_are_created_and_undone(key: str, home: Path) -> None:
    assert install(str(SHOP), "--client", key, "--yes").exit_code == 0
    path = home / PLACES[key][0]
    assert written(key, path.read_text("utf-8")) == ENTRIES[key][0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert install(str(SHOP), "--client", key, "--undo", "--yes").exit_code == 0
    assert not path.exists()


@pytest.mark.server
@pytest.mark.parametrize("key", BEFORE)
@pytest.mark.parametrize("broken", [b"{]", b"\xff\xfe{}", b"a: [\n\tb"], ids=["text", "bytes", "tab"])
def test_broken_files_are_rejected_and_unchanged(key: str, broken: bytes, home: Path) -> None:
    path = home / PLACES[key][0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(broken)
    done = install(str(SHOP), "--client", key, "--yes")
    assert isinstance(done.exception, CommandError)
    assert str(path) in done.exception.what
    assert done.exception.fix
    assert path.read_bytes() == broken
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.server
def test_install_shows_the_change_and_asks_for_confirmation(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / PLACES["claude"][0]
    path.parent.mkdir(parents=True)
    path.write_text(BEFORE["claude"], "utf-8")
    shown = install(str(SHOP), "--client", "claude", "--dry-run")
    assert '+    "shop": {' in shown.stdout.splitlines()
    assert shown.exit_code == 0
    unasked = install(str(SHOP), "--client", "claude")
    assert (unasked.exit_code, unasked.output.count("Use --yes.")) == (2, 1)
    monkeypatch.setattr(command, "somebody_looks", lambda: True)
    assert install(str(SHOP), "--client", "claude", given="n\n").exit_code == 1
    assert path.read_text("utf-8") == BEFORE["claude"]
    done = install(str(SHOP), "--client", "claude", given="y\n")
    assert (done.exit_code, "Quit Claude Desktop" in done.output) == (0, True)
    assert '"shop"' in path.read_text("utf-8")


@pytest.mark.server
def test_diff_shows_only_the_entry(home: Path) -> None:
    path = home / PLACES["cursor"][0]
    path.parent.mkdir(parents=True)
    text = '{"token": "top", "mcpServers": {"a": {"command": "x", "env": {"KEY": "hidden"}}}}'
    path.write_text(text, "utf-8")
    added = install(str(SHOP), "--client", "cursor", "--yes", "-v", "KEY=own").stdout
    undone = install(str(SHOP), "--client", "cursor", "--undo", "--yes").stdout
    for shown, sign in ((added, "+"), (undone, "-")):
        assert re.search(rf"^\{sign}.*own", shown, re.MULTILINE)
        assert not re.search("hidden|top", shown)
    assert path.read_text("utf-8") == text


@pytest.mark.server
@for_each("key", ["codex", "goose"])
def test_entries_for_other_files_are_printed(key: str, home: Path) -> None:
    path, reads = home / PLACES[key][0], tomllib.loads if key == "codex" else yaml.safe_load
    under, entries = APPLICATIONS[key].under, ENTRIES[key]
    variables = {"A B": 'ä "\\" \n', "C": "true"}
    more = [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    local = {**entries[0], "env" if key == "codex" else "envs": variables}
    for target, options, wanted in (
        (str(SHOP), more, local), (URL, ["--header", "Authorization: Bearer k"], entries[1]),
    ):  # fmt: skip
        done = install(target, "--client", key, "--name", "shop", *options)
        assert done.exit_code == 0, done.output
        assert reads(done.stdout) == {under: {"shop": wanted}}
        assert f"Add this to {path}." in done.stderr
        shown = json.loads(install(target, "--client", key, "--name", "shop", "--json", *options).stdout)
        assert (shown["file"], reads(shown["snippet"])) == (str(path), {under: {"shop": wanted}})
    undone = install(str(SHOP), "--client", key, "--undo").exception
    assert isinstance(undone, CommandError)
    assert str(path) in undone.fix
    assert not path.exists()


@pytest.mark.server
def test_install_prints_a_report_in_json(home: Path) -> None:
    first = json.loads(install(str(SHOP), "--client", "cursor", "--yes", "--json").stdout)
    assert (first["result"], first["file"]) == ("installed", str(home / ".cursor/mcp.json"))
    again = json.loads(install(str(SHOP), "--client", "cursor", "--yes", "--json").stdout)
    assert (again["result"], again["diff"]) == ("unchanged", "")
    path = home / ".cursor" / "mcp.json"
    path.write_text(path.read_text("utf-8").replace("\n", ""), "utf-8")
    written_otherwise = json.loads(install(str(SHOP), "--client", "cursor", "--yes", "--json").stdout)
    assert written_otherwise["result"] == "unchanged"


@pytest.mark.server
def test_user_additions_to_an_entry_are_kept(home: Path) -> None:
    path = home / ".gemini" / "settings.json"
    assert install(str(SHOP), "--client", "gemini", "--yes", "-v", "KEY=1").exit_code == 0
    text = path.read_text("utf-8").replace('"command"', '"trust": true,\n      "command"')
    path.write_text(text, "utf-8")
    assert install(str(SHOP) + ":mcp", "--client", "gemini", "--yes").exit_code == 0
    entry = command_value(path.read_text("utf-8"))["mcpServers"]["shop"]
    assert (entry["trust"], entry["env"], entry["args"][1]) == (True, {"KEY": "1"}, f"{SHOP}:mcp")


@pytest.mark.server
def test_goose_entries_have_lowercase_names(home: Path) -> None:
    shown = install(str(SHOP), "--client", "goose", "--name", "Shop").stdout
    assert yaml.safe_load(shown)["extensions"]["shop"]["name"] == "shop"


def entry_in_gemini(home: Path, entry: dict[str, Any]) -> Path:
    """Write Gemini CLI's file with one entry, `shop`."""
    path = home / PLACES["gemini"][0]
    path.parent.mkdir()
    path.write_text(json.dumps({"mcpServers": {"shop": entry}}), "utf-8")
    return path


COMMAND = {"command": "x", "args": [str(SHOP)], "cwd": "/srv", "trust": True, "timeout": 20}
REMOTE = {"httpUrl": "https://example.com/old", "headers": {"X": "Y"}, "oauth": {"clientId": "c"}, "timeout": 20}


@pytest.mark.parametrize(
    ("before", "target", "entry"),
    [(COMMAND, URL, {"httpUrl": URL}), pytest.param(REMOTE, str(SHOP), LOCAL, marks=pytest.mark.server)],
    ids=["a URL", "a command"],
)
def test_entries_for_other_servers_inherit_nothing(
    before: dict[str, Any], target: str, entry: dict[str, Any], home: Path
) -> None:
    path = entry_in_gemini(home, before)
    assert install(target, "--client", "gemini", "--name", "shop", "--yes").exit_code == 0
    assert written("gemini", path.read_text("utf-8")) == entry


@pytest.mark.server
def test_user_additions_are_kept_for_the_same_server(home: Path) -> None:
    path = entry_in_gemini(home, COMMAND)
    assert install(str(SHOP), "--client", "gemini", "--yes").exit_code == 0
    kept = {"cwd": "/srv", "trust": True, "timeout": 20}
    assert written("gemini", path.read_text("utf-8")) == {**LOCAL, **kept}


def test_other_hosts_inherit_no_credentials(home: Path) -> None:
    path = entry_in_gemini(home, {"httpUrl": "https://shop.example/mcp", "headers": {"Authorization": "Bearer k"}})
    assert install("https://shop.evil.example/mcp", "--client", "gemini", "--name", "shop", "--yes").exit_code == 0
    assert written("gemini", path.read_text("utf-8")) == {"httpUrl": "https://shop.evil.example/mcp"}


@pytest.mark.server
def test_undo_keeps_later_changes(home: Path) -> None:
    path = home / PLACES["gemini"][0]
    path.parent.mkdir()
    path.write_text(BEFORE["gemini"], "utf-8")
    install(str(SHOP), "--client", "gemini", "--yes")
    install(URL, "--client", "gemini", "--name", "web", "--yes")
    done = install(str(SHOP), "--client", "gemini", "--undo", "--yes")
    assert done.exit_code == 0, done.output
    assert set(command_value(path.read_text("utf-8"))["mcpServers"]) == {"other", "web"}
    assert isinstance(install(str(SHOP), "--client", "gemini", "--undo", "--yes").exception, CommandError)


@pytest.mark.server
def test_file_modes_and_links_are_kept(home: Path) -> None:
    real = home / "dotfiles.json"
    real.write_text("{}", "utf-8")
    real.chmod(0o640)
    path = home / ".cursor" / "mcp.json"
    path.parent.mkdir()
    path.symlink_to(real)
    assert install(str(SHOP), "--client", "cursor", "--yes").exit_code == 0
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "shop" in real.read_text("utf-8")


@pytest.mark.server
@for_each("undo", [False, True])
def test_changes_made_during_the_question_are_kept(home: Path, *, undo: bool) -> None:
    from millstream._cli.install import prepare, prepare_undo, write  # noqa: PLC0415 - only here is it done by hand

    path = home / PLACES["cursor"][0]
    path.unlink(missing_ok=True)
    if undo:
        assert install(str(SHOP), "--client", "cursor", "--name", "shop", "--yes").exit_code == 0
        change = prepare_undo(path, ("mcpServers", "shop"))
    else:
        path.parent.mkdir()
        change = prepare(path, ("servers", "x"), lambda old: {})
    path.write_text('{"new": 1}', "utf-8")
    with pytest.raises(CommandError, match="was changed by another program"):
        write(change, "shop")
    assert path.read_text("utf-8") == '{"new": 1}'


@pytest.mark.server
def test_variables_come_from_options_and_a_file(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text("# mine\nexport A='1 2'\nB=\"x\\ny\" # two\nC = plain  # three\n\nD=#\n", "utf-8")
    install(str(SHOP), "--client", "cursor", "--yes", "-f", str(file), "-v", "A=3")
    entry = command_value((home / ".cursor/mcp.json").read_text("utf-8"))["mcpServers"]["shop"]
    assert entry["env"] == {"A": "3", "B": "x\ny", "C": "plain", "D": "#"}
    file.write_text("A=1\nnothing\n", "utf-8")
    done = install(str(SHOP), "--client", "cursor", "--yes", "-f", str(file))
    assert isinstance(done.exception, CommandError)
    assert "Line 2" in done.exception.what


@pytest.mark.server
def test_claude_desktop_entries_keep_the_name_as_typed(home: Path) -> None:
    words = [str(SHOP), "--client", "claude", "--yes", "--name", "My Analytics Server"]
    done = install(*words)
    assert "Added My Analytics Server to Claude Desktop." in done.stdout
    path = home / PLACES["claude"][0]
    assert list(command_value(path.read_text("utf-8"))["mcpServers"]) == ["My Analytics Server"]
    assert install(*words, "--undo").exit_code == 0
    assert not path.exists()


@pytest.mark.server
def test_installing_again_merges_variables(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.env"
    file.write_text("B=3\nC=4\n", "utf-8")
    for options in (["-v", "A=1", "-v", "B=2"], ["-f", str(file)], []):
        assert install(str(SHOP), "--client", "cursor", "--yes", *options).exit_code == 0
    assert written("cursor", (home / PLACES["cursor"][0]).read_text("utf-8"))["env"] == {"A": "1", "B": "3", "C": "4"}


@pytest.mark.server
def test_project_files_are_supported(home: Path, folder: Path) -> None:
    assert install(str(SHOP), "--client", "vscode", "--project", "--yes").exit_code == 0
    assert "shop" in command_value((folder / ".vscode" / "mcp.json").read_text("utf-8"))["servers"]
    assert isinstance(install(str(SHOP), "--client", "claude", "--project", "--yes").exception, CommandError)


@pytest.mark.server
@for_each(
    ("arguments", "words"),
    [
        (["nothing.py", "--client", "claude"], "There is no file nothing.py"),
        ([__file__.replace(".py", ".txt"), "--client", "claude"], "There is no file"),
        ([str(SHOP), "--client", "emacs"], "isn't a supported application"),
        ([str(SHOP)], "No supported application"),
        ([URL, "--client", "cursor", "-v", "A=1"], "Variables can't be set"),
        ([str(SHOP), "--client", "cursor", "--header", "A: 1"], "Headers can't be sent"),
        (["ftp://example.com", "--client", "cursor"], "isn't a server URL"),
        (["wss://example.com/ws", "--client", "cursor"], "can't use WebSockets"),
        ([str(SHOP), "--client", "cursor", "--with-editable", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_invalid_installs_are_explained_in_one_sentence(arguments: list[str], words: str, home: Path) -> None:
    done = install(*arguments, "--yes")
    assert isinstance(done.exception, CommandError)
    assert words in done.exception.what
    assert [each for each in home.rglob("*") if each.is_file()] == []


@pytest.mark.server
def test_single_installed_application_is_the_default(home: Path) -> None:
    (home / ".cursor").mkdir()
    assert "Added shop to Cursor" in install(str(SHOP), "--yes").output
    (home / ".gemini").mkdir()
    done = install(str(SHOP), "--yes")
    assert isinstance(done.exception, CommandError)
    assert "cursor, gemini" in done.exception.what


def test_missing_uv_is_explained(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.setenv("PATH", str(home))
    done = install(str(SHOP), "--client", "cursor", "--with", "pandas", "--yes")
    assert isinstance(done.exception, CommandError)
    assert "pip install uv" in done.exception.fix


def test_packages_run_with_uv_in_this_environment(home: Path) -> None:
    done = install(str(SHOP), "--client", "json", "--with", "pandas", "--with-editable", str(home))
    entry = json.loads(done.stdout)["mcpServers"]["shop"]
    assert Path(entry["command"]).is_absolute()
    assert entry["args"] == [
        "run", "--quiet", "--no-project", "--python", sys.executable, "--with", "pandas", "--with-editable", str(home),
        "python", "-m", "millstream", *ARGS,
    ]  # fmt: skip


@pytest.mark.server
def test_printed_configuration_works_with_our_client(home: Path) -> None:
    configuration = json.loads(install(str(SHOP), "--client", "json").stdout)
    place = find_server(configuration, env={}, cwd=None)
    assert isinstance(place, Command)
    assert place.argv == (PROGRAM, *ARGS)


@for_each(
    ("target", "name"),
    [("a/shop.py", "shop"), ("a/shop.py:mcp", "shop"), ("https://mcp.linear.app/mcp", "linear"),
     ("https://example.com/mcp", "example"), ("http://127.0.0.1:8000/mcp", "server"),
     ("my shop v1.2.py", "my-shop-v1-2"), ("Läden.py", "L-den"), ("店.py", "server")],
)  # fmt: skip
def test_default_names_come_from_file_or_host(target: str, name: str) -> None:
    assert command.name_of(target) == name


def test_server_lists_are_installed_as_a_gateway(tmp_path: Path) -> None:
    for name, text in (("servers.json", '{"mcpServers": {}}'), ("gateway.toml", "")):
        (tmp_path / name).write_text(text, "utf-8")
        found = command.launch_of(str(tmp_path / name), env={}, headers={})
        assert (found.command, found.args) == (PROGRAM, ("gateway", str(tmp_path / name), "--transport", "stdio"))
    (tmp_path / "servers.yaml").write_text("", "utf-8")
    with pytest.raises(CommandError, match=r"servers\.yaml is neither Python nor JavaScript, nor a list of servers\."):
        command.launch_of(str(tmp_path / "servers.yaml"), env={}, headers={})


@pytest.mark.server
def test_programs_for_other_libraries_are_started_unchanged(tmp_path: Path) -> None:
    for name, text in (("other.py", "import mcp\n"), ("other.js", "")):
        (tmp_path / name).write_text(text, "utf-8")
    python = command.launch_of(str(tmp_path / "other.py"), env={}, headers={})
    assert (python.command, python.args) == (sys.executable, (str(tmp_path / "other.py"),))
    assert command.launch_of(str(tmp_path / "other.js"), env={}, headers={}).args == (str(tmp_path / "other.js"),)
    old = tmp_path / "old.py"  # the SDK that's installed here is 2.x, which has no such module
    old.write_text("from mcp.server.fastmcp import FastMCP\n", "utf-8")
    by_run = command.launch_of(f"{old}:mcp", env={}, headers={})
    assert (by_run.command, by_run.args) == (PROGRAM, ("run", f"{old}:mcp", "--transport", "stdio"))
    assert command.Launch(url="http://10.0.0.1/mcp").by_remote().args[-1] == "--allow-http"
    assert command.Launch(url="http://localhost:8000/mcp").by_remote().args[-1] == "http://localhost:8000/mcp"
