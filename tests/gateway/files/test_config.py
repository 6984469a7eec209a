import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cases import for_each
from millstream import Server
from millstream._app.gateway_server import server_of_file
from millstream._gateway.files.read import load_file
from millstream._gateway.files.values import ConfigError
from millstream._gateway.options.policy import ToolPolicy, UpstreamPolicy
from millstream._gateway.options.upstream import UpstreamOptions
from millstream._gateway.rules.policy import Policy
from millstream.client import Client
from millstream.gateway import UpstreamConfig, per_user_oauth
from patience import WAIT

FILE = """
name = "tools"
store = "sqlite:///${HOME_OF_DATA}/gateway.db"

[settings]
tool_search = true

[policy]
deny = ["*_delete"]

[upstreams.github]
url = "https://${HOST:-api.example}/mcp"
headers = { X-Team = "$${not expanded}" }
timeout = 5
trust = "pin"

[upstreams.github.policy]
allow = ["search_*", "create_issue"]
limit = "60/minute"

[upstreams.github.policy.tools.create_issue]
name = "open_issue"
hidden = { owner = "acme" }

[upstreams.files]
command = "npx"
args = ["${HOME_OF_DATA}"]

[upstreams.off]
command = "none"
disabled = true
"""


def write(folder: Path, text: str, name: str = "gateway.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_file_options_match_the_code(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    config = load_file(path, {"HOME_OF_DATA": "/data"})
    assert config.name == "tools"
    assert config.store == "sqlite:////data/gateway.db"
    assert config.settings == {"tool_search": True}
    github, files = config.upstreams
    assert github.target == "https://api.example/mcp"
    assert github.headers == {"X-Team": "${not expanded}"}
    assert github.timeout == 5.0
    assert github.policy == UpstreamPolicy(
        allow=("search_*", "create_issue"),
        limit="60/minute",
        pins=str(tmp_path / "gateway.lock"),
        tools={"create_issue": ToolPolicy(name="open_issue", hidden={"owner": "acme"})},
        shared=UpstreamPolicy(deny=("*_delete",)),
    )
    assert files.target == ["npx", "/data"]


MISTAKES = {
    '[upstreams.a]\nurl = "http://a/mcp"\ntimout = 5': (
        "line 3: upstreams.a.timout: unknown option; did you mean 'timeout'?"
    ),
    '[upstreams.a]\nopenapi = "a.json"\nbase_url = "http://b"': (
        "line 3: upstreams.a.base_url: unknown option; write it under [upstreams.a.openapi]."
    ),
    '[upstreams.a]\nurl = "http://a/mcp"\ndeny = ["x"]': (
        "line 3: upstreams.a.deny: unknown option; write it under [upstreams.a.policy]."
    ),
    "nam = 1": "line 1: nam: unknown option; did you mean 'name'?",
    '[upstreams.a]\nurl = "http://a/mcp"\n\ntimeout = "5"': (
        "line 4: upstreams.a.timeout: it must be a number of seconds above 0, not '5'"
    ),
    '[upstreams.a]\ncommand = "a"\n[upstreams.a.policy.tools."x*"]\nlimt = "1/day"': (
        "line 4: upstreams.a.policy.tools.x*.limt: unknown option; did you mean 'limit'?"
    ),
    '[upstreams.a]\ncommand = "a"\npolicy = { limit = "often" }': (
        "line 3: upstreams.a.policy.limit: it must be a number and a unit: 600/minute, 5/second, not 'often'"
    ),
    '[upstreams.a]\ncommand = "a"\nenv = {\n# }\n}\nheaders = { X = "${TOKE}" }': (
        "the variable TOKE isn't set (did you mean TOKEN?). Set it, or write ${TOKE:-default}"
    ),
    '[upstreams.a]\ntext = """\n[x]\n"""': "line 2: upstreams.a.text: unknown option",
    "[upstreams.a]\ntimeout = 1": (
        "line 1: upstreams.a: the upstream has no target: use exactly one of url, command, and openapi."
    ),
    '[upstreams.a]\nurl = "http://a/mcp"\ncommand = "b"': "line 1: upstreams.a: the upstream has url and command",
    '[upstreams.a]\nurl = "http://a/mcp"\nargs = ["b"]': (
        "line 3: upstreams.a.args: args requires a command, but this upstream has url"
    ),
    '[upstreams.a]\nargs = ["b"]\nopenapi = "http://a/openapi.json"': (
        "line 2: upstreams.a.args: args requires a command, but this upstream has openapi"
    ),
    '[upstreams.a]\nopenapi = "http://a/openapi.json"\nenv = { A = "b" }': (
        "line 3: upstreams.a.env: env requires a command, but this upstream has openapi"
    ),
    '[upstreams.a]\ncommand = "a"\n[upstreams.a.policy.tools.x]\nusers = ["b"]': (
        "line 4: upstreams.a.policy.tools.x.users: unknown option; use one of scopes, groups, claims, "
    ),
    '[upstreams.a]\ncommand = "a"\n[upstreams.a.auth]\ntoken = "b"': (
        "line 3: upstreams.a.auth.kind: it's missing; use one of bearer, headers,"
    ),
    '[upstreams.a]\nurl = "http://a/mcp"\ncwd = "b"': (
        "line 3: upstreams.a.cwd: cwd requires a command, but this upstream has url"
    ),
    '[upstreams.a]\nopenapi = "http://a/openapi.json"\nisolation = "per_principal"': (
        "line 3: upstreams.a.isolation: isolation requires a connection, but this upstream has openapi"
    ),
    '[upstreams.a]\ncommand = "a"\n[upstreams.a.policy]\nlimit = "1/day"\nredact_results = ["[0-9"]': (
        "line 5: upstreams.a.policy.redact_results: '[0-9' isn't a valid RE2 regular expression: "
    ),
    '[policy.tools."x*"]\nredact_arguments = ["\\\\d*"]': "line 2: policy.tools.x*.redact_arguments: ",
    '[upstreams.a]\ncommand = "a"\n[upstreams.b]\ncommand = "b"\nprefix = "a"': (
        "line 5: upstreams.b.prefix: the upstream 'a' already has the prefix 'a'. Give one of them another prefix."
    ),
    '[upstreams.a]\nurl = "http://a/mcp"\nisolation = "many"': (
        "line 3: upstreams.a.isolation: it must be one of shared, per_principal, per_session, not 'many'"
    ),
    "[settings]\ntool_serch = true": ("line 2: settings.tool_serch: unknown option; did you mean 'tool_search'?"),
    '[settings]\npage_size = "x"': "line 2: settings.page_size: it must be a whole number, 1 or more, not 'x'",
    '[upstreams.a]\nurl = "http://a/mcp"\nauth = { kind = "bear", env = "X" }': (
        "line 3: upstreams.a.auth.kind: 'bear' isn't a kind of credentials; did you mean 'bearer'?"
    ),
    '[upstreams.a]\nurl = "http://a/mcp"\n[upstreams.a.auth]\nkind = "bearer"\nenw = "X"': (
        "line 5: upstreams.a.auth.enw: unknown option; did you mean 'env'?"
    ),
    'serve = "web"': """line 1: serve: it must be a list such as ["a", "b"], not 'web'""",
    '[upstreams.a]\ncommand = "a"\npolicy.questions = ["form"]': (
        "line 3: upstreams.a.policy.questions: it must be a list with some of elicitation, sampling, roots"
    ),
    '[upstreams.a]\ncommand = "a"\nauth = { kind = "bearer", token = "X" }': "unknown option; use one of env, file",
    'auth_keys = "keys.json"': "line 1: auth_keys: unknown option; write it under [settings].",
    "[toolsets.a]": "line 1: toolsets: a choice of items with an address of its own is a set here. Write [sets.NAME].",
    "[settings]\nport = 8001": "line 2: settings.port: unknown option; set it on the command line, with --port",
    '[upstreams.a]\ncommand = "x"\nenv = {PORT = 1}': "line 3: upstreams.a.env.PORT: it must be a string, not 1.",
    "upstreams = 3": "line 1: upstreams: it must be tables such as [upstreams.NAME], not 3",
    '[[policy]]\ndeny = ["x"]': 'line 1: policy: it must be a table of options, not [{"deny": ["x"]}]',
    "x = ": "isn't valid TOML: Invalid value (at end of document). Write key = ",
    '{"mcpServers": {}}': "Name a JSON file NAME.json.",
    '[upstreams.a]\nurl = "http://a/mcp"\nauth = "sesame"': "line 3: upstreams.a.auth: it must be a table such as {",
    'name = "a"\ncommand = "C:\\Users\\ada"': r"column 16). Write a path in single quotes: 'C:\servers\shop.py'.",
    "[upstreams.a]\ndisabled = False": "(at line 2, column 12). Write true or false in lower case",
    'name = "a"\nname = "b"': "Write each table and each key once.",
    "[upstreams.a]\nnote = 'x'\n[upstreams.a]\nnote = 'y'": "Write each table and each key once.",
}


@pytest.mark.parametrize("name", ["auth_keys", "tls_cert", "tls_key", "audit_log", "log_file"])
def test_files_in_settings_are_relative_to_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "gateway", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for value, path in (("a.json", folder / "a.json"), ("${HERE:-b}/c", folder / "b/c"), (str(tmp_path), tmp_path)):
        file = write(folder, f'[settings]\n{name} = "{value}"')
        for spelling in (file, Path(os.path.relpath(file))):
            config = load_file(spelling)
            assert [*map(os.path.normpath, config.settings.values())] == [str(path)]
            assert (path in {each.resolve() for each in config.files}) == (name == "auth_keys")
    assert load_file(write(folder, f'[settings]\n{name} = ""')).settings == {name: ""}
    with pytest.raises(ConfigError, match=rf"{name}: it must be the path of a file, not (1|another type)"):
        load_file(write(folder, f"[settings]\n{name} = 1"))


def test_files_follow_a_folder_that_is_replaced(tmp_path: Path) -> None:
    """As when Kubernetes updates a mounted ConfigMap, or a release is switched by its link."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, '[settings]\nauth_keys = "keys.json"\n[upstreams.a]\ncommand = "npx"\ntrust = "pin"')
    (tmp_path / "current").symlink_to("1")
    (tmp_path / "gateway.toml").symlink_to("current/gateway.toml")
    for file in (tmp_path / "current" / "gateway.toml", tmp_path / "gateway.toml"):
        config = load_file(file)
        (upstream,) = config.upstreams
        assert upstream.policy is not None
        assert config.settings == {"auth_keys": str(file.parent / "keys.json")}
        assert (upstream.policy.pins, upstream.cwd) == (str(file.with_suffix(".lock")), str(file.parent))


def test_unknown_user_in_a_path_is_an_error_with_its_line(tmp_path: Path) -> None:
    for text in (
        '[settings]\nlog_file = "~nosuchuser/log"',
        '[upstreams.a]\ncommand = "npx"\ncwd = "~nosuchuser"',
        '[upstreams.a]\nurl = "https://a.test"\nauth = { kind = "bearer", file = "~nosuchuser/key" }',
    ):
        with pytest.raises(ConfigError, match=r"line \d: .*~nosuchuser.* has no folder"):
            load_file(write(tmp_path, text))


def test_files_with_secrets_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gateway").mkdir()
    monkeypatch.chdir(tmp_path)
    there = str(tmp_path / "gateway" / "here")
    for auth in (
        '{ kind = "bearer", file = "here" }',
        '{ kind = "headers", headers = { a = { file = "here" } } }',
        '{ kind = "client_credentials", issuer = "https://a", client_id = "a", client_secret = { file = "here" } }',
    ):
        write(tmp_path / "gateway", f'[upstreams.a]\nurl = "https://a.example/mcp"\nauth = {auth}')
        (upstream,) = load_file(Path("gateway/gateway.toml")).upstreams
        assert f'"file": "{there}"' in json.dumps(msgspec.to_builtins(upstream.auth))


def test_accepted_definitions_are_kept_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gateway"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    for pins, path in (("", "gateway.lock"), ('\npolicy.pins = "ours.lock"', "ours.lock")):
        write(folder, f'[upstreams.a]\ncommand = "npx"\ntrust = "pin"{pins}')
        (upstream,) = load_file(Path("gateway/gateway.toml")).upstreams
        assert upstream.policy is not None
        assert Path(upstream.policy.pins).resolve() == folder / path


def test_toml_errors_show_the_file_the_line_and_a_fix(tmp_path: Path) -> None:
    for text, expected in MISTAKES.items():
        if "env = {" in text:
            text = text.replace("env = {\n# }\n}\n", "")  # noqa: PLW2901  TOML 1.0 has no such tables
        path = write(tmp_path, text)
        with pytest.raises(ConfigError) as caught:
            load_file(path, {"TOKEN": "t"})
        assert str(path) in str(caught.value), text
        assert expected in str(caught.value), text
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load_file(tmp_path / "none.toml")
    for line in ('headers = "Bearer ${TOKEN}"', 'auth = "${TOKEN}"', 'timeout = "${TOKEN}"'):
        with pytest.raises(ConfigError, match=r"\{TOKEN\}") as caught:
            load_file(write(tmp_path, f'[upstreams.a]\nurl = "http://a/mcp"\n{line}'), {"TOKEN": "sesame"})
        assert "sesame" not in str(caught.value)


def test_line_numbers_in_errors_count_only_line_feeds(tmp_path: Path) -> None:
    for text in (
        '# \x85\n# \u2028 \u2029\n[upstreams.a]\ncommand = "a"\nbad = 1',
        '[upstreams.a]\r\n\r\n\r\ncommand = "a\u2028b"\r\nbad = 1',
        '[upstreams."a]\\""]\nargs = ["]", # [\n\'{\']\ncommand = """"a"""" # "\nbad = 1',
        "[upstreams.a]\ncommand = '''\n'''''\n\nbad = 1",
    ):
        with pytest.raises(ConfigError, match=r"line 5: upstreams\..*\.bad: unknown option"):
            load_file(write(tmp_path, text), {})


def test_errors_in_long_arrays_are_located_without_parsing_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0
    loads = tomllib.loads

    def count(text: str) -> dict[str, Any]:
        nonlocal parsed
        parsed += len(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", count)
    text = '[upstreams.a]\ncommand = "a"\nargs = [\n' + '"b",\n' * 200 + "]\nbad = 1\n"
    with pytest.raises(ConfigError, match=r"line 205: upstreams\.a\.bad: unknown option"):
        load_file(write(tmp_path, text), {})
    assert parsed < 4 * len(text)


CLAUDE = """{"mcpServers": {
  "files": {"command": "npx", "args": ["-y", "files", "${FOLDER}"], "env": {"KEY": "${KEY:-none}"}, "autoApprove": []},
  "my web": {"type": "http", "url": "https://web.example/mcp", "headers": {"Authorization": "Bearer ${env:KEY}"}},
  "off": {"command": "none", "disabled": true}
}}"""
CODE = """{
  // as VS Code writes it
  "inputs": [{"type": "promptString", "id": "key"}],
  "servers": {
    "files": {"type": "stdio", "command": "npx", "args": ["${workspaceFolder}"],},
    "web": {"type": "sse", "url": "https://web.example/sse", "headers": {"X-Key": "${input:key}"}},
  },
}"""


def test_application_configuration_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, web = load_file(write(tmp_path, CLAUDE, "mcp.json"), {"FOLDER": "/f", "KEY": "k"}).upstreams
    assert (files.target, files.env) == (["npx", "-y", "files", "/f"], {"KEY": "k"})
    assert (web.name, web.prefix, web.headers) == ("my web", "my-web", {"Authorization": "Bearer k"})
    path = write(tmp_path, CODE, "mcp.json")
    assert [each.name for each in load_file(path).upstreams] == ["files"]
    assert "line 6: servers.web.headers.X-Key: ${input:key} asks the user" in caplog.text
    path.write_text(CODE.replace("${input:key}", "k"), "utf-8")
    files, web = load_file(path).upstreams
    assert files.target == ["npx", str(tmp_path)]
    for text, expected in (
        (
            '{"mcpServers": {\n"a": {"comand": "x"}}}',
            "line 2: mcpServers.a: .* neither .did you mean command instead of comand",
        ),
        ('{"mcpServers": {"a": \n', "line 2 has an unexpected end of the document"),
        ('{"other": 1}', "neither mcpServers nor servers"),
        ('{"mcpServers": {"a": {"command": 3}}}', r"line 1: mcpServers\.a\.command"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_file(write(tmp_path, text, "mcp.json"))


GEMINI = """{"mcpServers": {
  "shop": {"command": "npx", "includeTools": ["search(text)", "get_[x]"], "excludeTools": ["drop"], "trust": true},
  "files": {"httpUrl": "https://files.example/mcp", "disabledTools": ["write"], "timeout": 9, "trust": false},
  "off": {"command": "none", "disabled": true, "oauth": {}}
}}"""


def test_tools_that_an_application_disables_are_not_offered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, GEMINI, "settings.json")
    shop, files = (Policy(each.policy) for each in load_file(path).upstreams if each.policy)
    names = ("search", "get_[x]", "get_x", "drop", "write")
    assert [each for each in names if shop.item("tools", each)] == ["search", "get_[x]"]
    assert shop.item("resources", "file:///a")
    assert [each for each in names if files.item("tools", each)] == ["search", "get_[x]", "get_x", "drop"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: these options have no effect in a gateway: trust, timeout"
    ]


@pytest.mark.server
@pytest.mark.parametrize("name", ["drop[all]", "drop*", "drop?"])
@pytest.mark.parametrize("member", ["excludeTools", "disabledTools"])
async def test_tools_that_a_file_excludes_are_not_offered(member: str, name: str, tmp_path: Path) -> None:
    program = f"from millstream import Server\ns = Server('x')\ns.tool(lambda: '', name={name!r})\ns.run('stdio')"
    entry = {"command": sys.executable, "args": ["-W", "ignore", "-c", program], member: [name]}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"x": entry}}))
    async with Client(server_of_file(file, ""), timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == []


def test_null_members_in_application_files_are_absent(tmp_path: Path) -> None:
    rest = dict.fromkeys(("env", "cwd", "headers", "envFile", "disabled", "includeTools", "type"))
    servers = {
        "a": {"command": "x", "args": ["y"], "url": None, **rest},
        "b": {
            "url": "https://b.example/mcp",
            "command": None,
            "args": None,
            **rest,
            "headers": {"X-A": 5, "X-B": None},
        },
    }
    a, b = load_file(write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json")).upstreams
    assert (a.target, a.env, a.cwd) == (["x", "y"], {}, None)
    assert (b.target, b.headers) == ("https://b.example/mcp", {"X-A": "5"})


def test_null_members_do_not_hide_those_with_other_names(tmp_path: Path) -> None:
    server = {"command": "x", "env": None, "environment": {"A": "1"}, "cwd": None, "workingDirectory": "/tmp"}
    zed = {"command": {"path": "x", "args": None, "env": None}, "args": ["y"], "env": {"A": "1"}}
    path = write(tmp_path, json.dumps({"mcpServers": {"a": server, "b": zed}}), "mcp.json")
    a, b = load_file(path).upstreams
    assert (a.env, a.cwd) == ({"A": "1"}, "/tmp")
    assert (b.target, b.env) == (["x", "y"], {"A": "1"})


def test_disabled_servers_in_application_files_are_not_read(tmp_path: Path) -> None:
    members = {"env_vars": [{"name": "K"}], "env_http_headers": {"A": 5}, "bearer_token_env_var": "${K}"}
    servers = {"a": {"disabled": True, **members}, "b": {"enabled": False, **members}, "c": {"command": "x"}}
    [only] = load_file(write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json"), {}).upstreams
    assert only.name == "c"


def test_values_in_place_of_variable_names_are_not_shown_as_names(tmp_path: Path) -> None:
    servers = {
        "a": {"url": "https://a.b", "bearer_token_env_var": "${K}"},
        "b": {"url": "https://a.b", "env_http_headers": {"X": "${K}"}},
        "c": {"command": "x", "env_vars": ["${K}"]},
    }
    path = write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json")
    assert len(load_file(path, {"K": "secret"}).upstreams) == 3  # an error would say that "secret" isn't set


@for_each("names", [["KEY", "NOT_SET"], [{"name": "KEY", "source": "local"}], [{"name": "KEY"}, "NOT_SET"],
                    ["KEY", {"name": "OTHER", "source": "remote"}]])  # fmt: skip
def test_only_set_variables_are_passed_on_by_name(names: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"mcpServers": {"a": {"command": "x", "env_vars": names}}}), "mcp.json")
    [server] = load_file(path, {"KEY": "k", "OTHER": "o"}).upstreams
    assert server.env == {"KEY": "k"}


@for_each("bad", [{"url": "not a url"}, {"url": ""}, {"command": "x", "env": {"A": "${NOT_SET}"}}, {"args": ["x"]},
                  {"command": "x", "env_vars": [{"source": "local"}]}, {"command": 5}, "text",
                  {"command": "x", "type": "carrier pigeon"}, {"url": "https://a.example/mcp", "type": "htp"},
                  {"url": "https://a.example/mcp", "transport": "grpc"}, {"command": "x", "type": 5}])  # fmt: skip
def test_wrong_entry_of_an_application_file_disables_only_that_server(
    bad: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    servers = {"bad": bad, "good": {"command": "x"}}
    path = write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json")
    assert [each.name for each in load_file(path, {}).upstreams] == ["good"]
    assert f"its entry has a mistake: {path}, line 1: mcpServers.bad" in caplog.text
    path = write(tmp_path, json.dumps({"mcpServers": {"bad": bad}}), "mcp.json")
    with pytest.raises(ConfigError, match=r"mcpServers\.bad"):  # nothing else would be offered
        load_file(path, {})


@for_each("servers", [{}, {"a": {"command": "x", "disabled": True}}])
async def test_application_file_without_servers_starts_an_empty_gateway(
    servers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    path = write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json")
    async with Client(server_of_file(path), timeout=WAIT) as client:
        assert await client.tools() == []
    assert f"{path} lists no servers that are enabled" in caplog.text


def test_errors_about_variables_show_the_place_once(tmp_path: Path) -> None:
    path = write(tmp_path, '[upstreams.a]\nurl = "https://a.b"\nheaders = {A = "${K}"}\n', "gateway.toml")
    with pytest.raises(ConfigError) as caught:
        load_file(path, {})
    assert str(caught.value) == (
        f"{path}, line 3: upstreams.a.headers.A: the variable K isn't set. Set it, or write ${{K:-default}}."
    )


def test_numbers_and_booleans_in_application_files_are_text(tmp_path: Path) -> None:
    server = {
        "command": "x",
        "args": [5, "a", True, 1.5],
        "env": {"PORT": 8080, "DEBUG": True, "UNSET": None, "A": "b"},
    }
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"servers": {"a": server}}))
    [upstream] = load_file(file).upstreams
    assert upstream.target == ["x", "5", "a", "true", "1.5"]
    assert upstream.env == {"PORT": "8080", "DEBUG": "true", "A": "b"}


OPENCODE = """{
  "$schema": "https://opencode.ai/config.json", "model": "a/b",
  "mcp": {
    "files": {"type": "local", "command": ["npx", "-y", "files"], "environment": {"KEY": "{env:KEY}"}, "timeout": 9},
    "web": {"type": "remote", "url": "https://web.example/mcp", "headers": {"Authorization": "Bearer {env:KEY}"}},
    "servers": {"type": "local", "command": ["x"], "enabled": false, "environment": {"A": "{env:MISSING}"}}
  }
}"""
CRUSH = """{"mcp": {
  "files": {"type": "stdio", "command": "npx", "args": ["-y", "files"], "env": {"KEY": "k"}},
  "web": {"type": "http", "url": "https://web.example/mcp", "headers": {"Authorization": "Bearer ${KEY}"}}
}}"""
ZED = """// Zed settings
{
  "theme": "One Dark",
  "context_servers": {
    "files": {"source": "custom", "enabled": true, "command": "npx", "args": ["-y", "files"], "env": {"KEY": "k"}},
    "web": {"url": "https://web.example/mcp", "headers": {"Authorization": "Bearer k"}},
    "off": {"source": "extension", "enabled": false, "settings": {}},
  },
}"""
OLD_ZED = """{"context_servers": {
  "files": {"command": {"path": "npx", "args": ["-y", "files"], "env": {"KEY": "k"}, "cwd": null}, "settings": {}},
  "web": {"source": "custom", "url": "https://web.example/mcp", "headers": {"Authorization": "Bearer k"}}
}}"""
SETTINGS = """{
  "editor.fontSize": 12, // the user's settings
  "mcp": {"inputs": [], "servers": {
    "files": {"type": "stdio", "command": "npx", "args": ["-y", "files"], "env": {"KEY": "${env:KEY}"}},
    "web": {"type": "http", "url": "https://web.example/mcp", "headers": {"Authorization": "Bearer k"}}
  }}
}"""
CODEX = """
model = "gpt-5"
[projects."/home/ada"]
trust_level = "trusted"
[mcp_servers.files]
command = "npx"
args = ["-y", "files"]
env_vars = ["KEY"]
startup_timeout_sec = 20
[mcp_servers.web]
url = "https://web.example/mcp"
bearer_token_env_var = "KEY"
[mcp_servers.off]
command = "off"
enabled = false
env = { A = "${MISSING}" }
"""
AMP = """{"amp.mcpServers": {
  "files": {"command": "npx", "args": ["-y", "files"], "env": {"KEY": "k"}},
  "web": {"url": "https://web.example/mcp", "headers": {"Authorization": "Bearer k"}}
}}"""


@for_each(
    ("name", "text"),
    [
        ("opencode.json", OPENCODE), ("opencode.jsonc", OPENCODE), ("crush.json", CRUSH), ("settings.json", ZED),
        ("settings.json", OLD_ZED), ("settings.json", SETTINGS), ("config.toml", CODEX), ("settings.json", AMP),
    ],
)  # fmt: skip
def test_other_applications_files_are_read(name: str, text: str, tmp_path: Path) -> None:
    files, web = load_file(write(tmp_path, text, name), {"KEY": "k"}).upstreams
    assert (files.name, files.target, files.env) == ("files", ["npx", "-y", "files"], {"KEY": "k"})
    assert (web.target, web.headers) == ("https://web.example/mcp", {"Authorization": "Bearer k"})


@for_each("kind", ["http", "sse", "streamable-http", "streamableHttp", "streamable_http", "remote", "HTTP", "", None])
def test_types_of_servers_at_urls_are_known_in_every_spelling(kind: str | None, tmp_path: Path) -> None:
    servers = {"web": {"type": kind, "url": "https://web.example/mcp"}}
    [web] = load_file(write(tmp_path, json.dumps({"mcpServers": servers}), "mcp.json"), {}).upstreams
    assert web.target == "https://web.example/mcp"


def test_codex_headers_and_tools_are_read(tmp_path: Path) -> None:
    text = """
[mcp_servers.web]
url = "https://web.example/mcp"
http_headers = { "X-A" = "a" }
env_http_headers = { "X-Key" = "KEY" }
enabled_tools = ["search", "drop"]
disabled_tools = ["drop"]
"""
    [web] = load_file(write(tmp_path, text, "config.toml"), {"KEY": "k"}).upstreams
    assert web.headers == {"X-Key": "k", "X-A": "a"}
    policy = Policy(web.policy or UpstreamPolicy())
    assert [each for each in ("search", "drop", "write") if policy.item("tools", each)] == ["search"]


def test_servers_that_gemini_leaves_out_are_left_out(tmp_path: Path) -> None:
    servers = {name: {"command": "x"} for name in ("a", "b", "c")}
    text = json.dumps({"mcp": {"allowed": ["a", "b"], "excluded": ["b"]}, "mcpServers": servers})
    assert [each.name for each in load_file(write(tmp_path, text, "settings.json")).upstreams] == ["a"]


def test_variables_without_braces_are_expanded_as_whole_words(tmp_path: Path) -> None:
    written = {"A": "$KEY", "B": "Bearer $KEY", "C": "p$KEY", "D": "$5", "E": "$${KEY}"}
    text = json.dumps({"mcpServers": {"a": {"command": "x", "env": written}}})
    [upstream] = load_file(write(tmp_path, text, "settings.json"), {"KEY": "k"}).upstreams
    assert upstream.env == {"A": "k", "B": "Bearer k", "C": "p$KEY", "D": "$5", "E": "${KEY}"}


def test_only_listed_copilot_tools_are_offered_unless_all_are_listed(tmp_path: Path) -> None:
    servers = {"a": {"command": "x", "tools": ["search"]}, "b": {"command": "x", "tools": ["*"]}}
    a, b = load_file(write(tmp_path, json.dumps({"mcpServers": servers}), "mcp-config.json")).upstreams
    policies = [Policy(each.policy or UpstreamPolicy()) for each in (a, b)]
    assert [each.item("tools", "drop") is not None for each in policies] == [False, True]
    assert policies[0].item("tools", "search")


def test_environment_files_are_read_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / ".env").write_text("# of the shop\nexport KEY='a b'\nPORT=1\n", "utf-8")
    for place in ("keys/.env", "${workspaceFolder}/keys/.env", "./keys/.env"):
        server = {"command": "x", "envFile": place, "env": {"PORT": "2"}}
        file = write(tmp_path, json.dumps({"servers": {"a": server}}), "mcp.json")
        [upstream] = load_file(file).upstreams
        assert upstream.env == {"KEY": "a b", "PORT": "2"}


@for_each(
    ("name", "text", "expected"),
    [
        ("mcp.json", '{"servers": {"a": {"command": "x",\n"envFile": "no"}}}', r"line 2: servers\.a\.envFile: .*no"),
        ("settings.json", '{"context_servers": {\n"a": {"settings": {}}}}', r"line 2: context_servers\.a: a Zed exten"),
        ("opencode.json", '{"mcp": {\n"a": {"command": ["x", "{file:~/k}"]}}}', r"line 2: mcp\.a: \{file:…\} isn't"),
        ("opencode.json", '{"mcp": {"a": {"command": ["x"],\n"environment": {"A": 1, "B": []}}}}', r"mcp\.a\.env"),
        ("config.toml", '[mcp_servers.a]\nurl = "https://a.b"\nbearer_token_env_var = "K"', "variable K isn't set"),
        ("config.toml", '[mcp_servers.a]\nargs = ["x"]', r"line 1: mcp_servers\.a: .* neither"),
        ("settings.json", '{"mcp": {"inputs": []}}', r"mcp\.inputs"),
        ("crush.json", '{"mcp": {\n"a": {"url": "https://a.b", "headers": {"A": "$(pass)"}}}}', r"2: mcp\.a: head"),
        ("settings.json", '{"mcpServers": {\n"a": {"command": "x", "env": {"A": "$KEY"}}}}', "line 2: .*KEY isn't set"),
        ("goose.yaml", "extensions:\n  fetch:\n    cmd: uvx", "doesn't read YAML"),
        ("mcp.json", '{"mcpServers": {"a": {"command": "x", "args": ["--long", ["b"]]}}}', r'not \["b"\]'),
        ("mcp.json", '{"mcpServers": [{"command": "python"}]}',
         r'mcpServers: it must be an object such as .*not \[{"command": "python"}\]\.$'),
        ("gateway.toml", '[upstreams.a]\nurl = "https://a.b"\n[auth]\nkeys = "keys.json"\n',
         r"millstream keys add NAME --file /.*/keys\.json$"),
    ],
)  # fmt: skip
def test_errors_in_other_applications_files_show_the_line(name: str, text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_file(write(tmp_path, text, name), {})


def test_names_without_ascii_letters_get_different_prefixes(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {name: {"command": "x"} for name in ("数据库", "shop", "天气")}}))
    assert [each.prefix for each in load_file(file).upstreams] == ["server", "shop", "server-2"]


def test_a_url_in_a_file_never_becomes_a_command(tmp_path: Path) -> None:
    variables = {"DOCS_URL": "touch pwned"}
    for place, member, text in (
        ("gateway.toml", "upstreams.docs.url", '[upstreams.docs]\nurl = "${DOCS_URL}"'),
        ("gateway.toml", "upstreams.docs.url", '[upstreams.docs]\nurl = "pwn.py"'),
        ("mcp.json", "mcpServers.docs.url", '{"mcpServers": {"docs": {\n"url": "touch pwned"}}}'),
        ("mcp.json", "mcpServers.docs.httpUrl", '{"mcpServers": {"docs": {\n"httpUrl": "${DOCS_URL}"}}}'),
        ("mcp.json", "servers.docs.serverUrl", '{"servers": {"docs": {\n"serverUrl": "docs.example/mcp"}}}'),
    ):
        with pytest.raises(ConfigError, match=rf"line 2: {member}: it must be a URL such as https:"):
            load_file(write(tmp_path, text, place), variables)


def test_variables_in_a_command_add_no_arguments(tmp_path: Path) -> None:
    file = str(write(tmp_path, "", "shop.py"))
    variables = {"FOLDER": "/a b; touch pwned", "PROGRAM": "touch pwned", "FILE": file}
    for command, target in (
        ("serve --in=${FOLDER} '${NONE:-a b} c'", ["serve", "--in=/a b; touch pwned", "a b c"]),
        ("${PROGRAM}", ["touch pwned"]),
        ("${FILE}", file),
        ("serve --all", "serve --all"),
    ):
        text = f'[upstreams.a]\ncommand = "{command}"'
        assert load_file(write(tmp_path, text), variables).upstreams[0].target == target
    with pytest.raises(ConfigError, match=r"line 2: upstreams\.a\.command: .*No closing quotation"):
        load_file(write(tmp_path, '[upstreams.a]\ncommand = "serve \'${FILE}"'), variables)


def test_options_without_effect_are_rejected_in_code() -> None:
    options: list[tuple[dict[str, Any], str]] = [
        ({"openapi": "a.json", "env": {"A": "b"}}, "'a': env requires a command"),
        ({"openapi": "a.json", "isolation": "per_principal"}, "'a': isolation requires a connection"),
        (
            {"target": "https://example.com/mcp", "keeps_state": False, "auth": per_user_oauth()},
            "'a': keeps_state = false can't be used with per_user_oauth, which keeps callers apart, ",
        ),
        (
            {"target": "https://example.com/mcp", "keeps_state": False, "isolation": "per_principal"},
            'keeps_state = false can\'t be used with isolation = "per_principal", ',
        ),
        ({"target": "https://example.com/mcp", "cwd": "b"}, "'a': cwd requires a command"),
    ]
    for each, error in options:
        with pytest.raises(ValueError, match=error):
            UpstreamConfig(**{"name": "a", "target": None, **each}).check()
    UpstreamConfig(name="a", target="uvx --from git+https://example.com/b b", env={"A": "b"}, cwd="c").check()


def test_policies_in_code_are_checked_like_files() -> None:
    assert UpstreamPolicy(deny=["a*"]).deny == ("a*",)  # type: ignore[arg-type]  # what people write
    for options in ({"deny": "delete_*"}, {"limit": "often"}, {"tools": {"x": {"limit": 3}}}, {"cost": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} can't be"):
            UpstreamPolicy(**options)
    with pytest.raises(TypeError, match="did you mean 'deny'"):
        UpstreamPolicy(denny=("x",))


def test_errors_about_secrets_do_not_reveal_them(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    for text in (
        '[settings]\nauth_key = ["S3CRET"]', '[auth.jwt]\nsecret = ["S3CRET"]', '[auth]\nkeys = ["S3CRET"]',
        '[auth.keys]\nnamed_keys = { desk = ["S3CRET", "read"] }', '[auth.keys]\nfile = ["S3CRET"]',
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError) as raised:
            load_file(file)
        assert "S3CRET" not in str(raised.value)
        assert "another type" in str(raised.value)


def test_mistakes_in_groups_and_approvals_name_the_option(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    for text, says in (
        ("groups.interns.readonly = true", "did you mean 'read_only'"),
        ("groups.interns.allow = 'a'", "a list such as"),
        ("groups = 'interns'", 'a list such as ["a", "b"] or a table'),
        ("approve = 'yes'", "true or false or a table"),
        ("approve.hint = 'write'", "one of"),
        ("approve.argument.a = 'b'", "did you mean 'arguments'"),
        ("approve.arguments = ['a']", "a table"),
    ):
        path.write_text(f"[upstreams.shop]\nurl = 'http://127.0.0.1:1'\n[upstreams.shop.policy]\n{text}\n")
        with pytest.raises(ConfigError, match=re.escape(says)):
            load_file(path)


@for_each(
    ("option", "value", "takes"),
    [
        ("max_connections", 0, "a whole number, 1 or more"),
        ("max_bytes", -1, "a whole number, 1 or more"),
        ("spare_processes", -1, "a whole number, 0 or more"),
        ("timeout", 0, "a number of seconds above 0"),
        ("idle_seconds", -0.5, "a number of seconds, 0 or more"),
    ],
)
def test_limits_of_an_upstream_are_in_range(tmp_path: Path, option: str, value: float, takes: str) -> None:
    with pytest.raises(TypeError, match=f"upstream 'shop': {option} takes {takes}"):
        Server("hub").upstream("shop", "http://127.0.0.1:1/mcp", **{option: value})  # type: ignore[misc]
    file = tmp_path / "gateway.toml"
    file.write_text(f'[upstreams.shop]\nurl = "http://127.0.0.1:1/mcp"\n{option} = {value}\n')
    with pytest.raises(ConfigError, match=f"{option}: it must be {takes}"):
        load_file(file)


def test_type_checkers_know_each_option_of_an_upstream() -> None:
    names = set(UpstreamConfig.__struct_fields__) - {"name", "target"}
    assert names == UpstreamOptions.__annotations__.keys(), "Add the option to UpstreamOptions as well."


def test_set_of_an_unknown_upstream_is_an_error_with_its_line(tmp_path: Path) -> None:
    upstreams = '[upstreams.shop]\nurl = "http://127.0.0.1:1/mcp"\n[upstreams.off]\ncommand = "x"\ndisabled = true\n'
    file = tmp_path / "gateway.toml"
    file.write_text(f'{upstreams}[sets.buyers]\nupstreams = ["sho"]\n')
    with pytest.raises(
        ConfigError, match=r"line 7: sets.buyers.upstreams: no upstream is named 'sho'; did you mean 'shop'"
    ):
        load_file(file)
    file.write_text(f'{upstreams}[sets.buyers]\nupstreams = ["shop", "off", "later_*"]\n')
    assert [each.upstreams for each in load_file(file).sets] == [("shop", "off", "later_*")]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
def test_file_that_all_users_can_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[upstreams.shop]\nurl = "http://127.0.0.1:1/mcp"\n')
    file.chmod(0o664)
    assert load_file(file).upstreams
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=rf"All users on this machine can write to .*\. Run: chmod o-w {file}"):
        load_file(file)
