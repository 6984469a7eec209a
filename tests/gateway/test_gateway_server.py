"""The tables ``[auth]`` and ``[sets]`` of a gateway.toml: users, keys, issuers, and sets of items."""

import json
import logging
import shutil
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
from msgspec import structs

from auth.issuing.test_server_paths import signed_in
from auth_world import run_guarded
from cases import for_each
from command_line import run_in_process
from http_peer import serve
from millstream import Client, Server, auth
from millstream._app.gateway_server import server_of_file
from millstream._gateway.files.values import ConfigError
from millstream.client import AccessDenied
from patience import WAIT
from processes import ROOT
from wire import request

URL = "https://mcp.example.com"
LIST = json.dumps(request("tools/list")).encode()
JSON = {"content_type": "application/json", "accept": "application/json, text/event-stream", "host": "mcp.example.com"}


def add_user(folder: Path, *options: str) -> None:
    """Add Ada to the file of accounts."""
    file = folder / "users.json"
    file.unlink(missing_ok=True)
    assert run_in_process("users", "add", "ada", *options, "--file", str(file), input="correct horse\n").exit_code == 0


def write(folder: Path, text: str) -> Path:
    """Write a configuration file with one upstream, which doesn't start."""
    path = folder / "gateway.toml"
    path.write_text(f'{text}\n[upstreams.shop]\nurl = "http://127.0.0.1:1/mcp"\n', "utf-8")
    return path


def served(path: Path, **settings: Any) -> Any:
    """Return the server of a file, behind a proxy with the public name."""
    server = server_of_file(path)
    server.definition.configure(allowed_hosts=["mcp.example.com"], **settings)
    return server


async def test_users_in_a_file_sign_in_with_their_scopes_and_groups(tmp_path: Path) -> None:
    add_user(tmp_path, "--scope", "orders:write", "--group", "staff", "--group", "on-call")
    described = 'scope_descriptions = {"orders:write" = "order"}'
    path = write(tmp_path, f'[auth.issuer]\nurl = "{URL}"\nusers = "users.json"\n{described}')
    async with run_guarded(served(path)) as world:
        found = await signed_in(world)
        guard = world.runtime.guard
        assert guard is not None
        identity, _ = await guard.identify(found)
        assert identity is not None
        principal = identity.principal
        assert (principal.subject, principal.claims["groups"]) == ("ada", ["staff", "on-call"])
        assert principal.scopes == {"orders:write"}
        assert (await world.ask(None, "POST", "/mcp", LIST, **JSON)).status == 401
        assert (await world.ask(found, "POST", "/mcp", LIST, **JSON)).status == 200


async def test_files_without_users_explain_how_to_add_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "users.json").write_text('{"users": []}', "utf-8")
    (tmp_path / "keys.json").write_text('{"keys": []}', "utf-8")
    path = write(tmp_path, f'[auth.issuer]\nurl = "{URL}"\nusers = "users.json"\n[auth.keys]\nfile = "keys.json"')
    async with run_guarded(served(path)):
        for kind in ("user", "key"):
            file = tmp_path / f"{kind}s.json"
            assert f"{file} has no {kind}s. Add one: millstream {kind}s add NAME --file {file}" in caplog.text


@for_each("text", ['[auth.keys]\nfile = "keys.json"', '[auth]\nkeys = "keys.json"'])
async def test_keys_in_a_file_are_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "keys.json").unlink(missing_ok=True)
    key = run_in_process("keys", "add", "ci", "--file", str(tmp_path / "keys.json")).stdout.strip()
    async with run_guarded(served(write(tmp_path, text))) as world:
        assert (await world.ask(key, "POST", "/mcp", LIST, **JSON)).status == 200
        assert (await world.ask("wrong", "POST", "/mcp", LIST, **JSON)).status == 403


async def test_issuers_in_a_file_are_advertised_to_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLICATION", "6f1c0f3e")
    path = write(
        tmp_path,
        '[auth.oidc]\nissuer = "http://127.0.0.1:1"\naudience = "${APPLICATION}"\n'
        f'resource = "{URL}/mcp"\nscopes = ["notes.read"]\nscope_claims = ["scp", "roles"]',
    )
    async with run_guarded(served(path)) as world:
        found = await world.ask(None, "GET", "/.well-known/oauth-protected-resource/mcp", host="mcp.example.com")
        assert found.message["authorization_servers"] == ["http://127.0.0.1:1"]
        assert found.message["resource"] == f"{URL}/mcp"


def test_users_option_may_be_a_table_with_a_file(tmp_path: Path) -> None:
    add_user(tmp_path)
    text = f'[auth.issuer]\nurl = "{URL}"\nusers = {{ file = "users.json" }}'
    assert len(server_of_file(write(tmp_path, text)).definition.auth) == 1


def test_logins_and_several_methods_are_combined(tmp_path: Path) -> None:
    text = f"""
    [auth.issuer]
    url = "{URL}"
    login_provider = [{{ provider = "google", allow = ["@example.com"], client_id = "a", client_secret = "b" }}]
    identity_provider = {{ issuer = "https://login.example.com", scopes = ["read"] }}
    clients = [{{ id = "desk", redirect_uris = ["https://desk.example.com/back"] }}]
    [auth.keys]
    named_keys = {{ ci = "a-long-enough-key-0123456789" }}
    """
    assert len(server_of_file(write(tmp_path, text)).definition.auth) == 2


@for_each(
    ("text", "line", "hint"),
    [
        ("[auth]\nuser = 1", 2, "unknown option"),
        ("[auth]", 1, "no way to sign in"),
        ("auth = 5", 1, "table of options"),
        ("[settings]\nauth_users = 'users.json'", 2, "[auth.issuer]"),
        ("users = 'users.json'", 1, "[auth.issuer]"),
        ("[auth.issuer]\nurl = 'https://a.example'", 1, "users, login_provider, or identity_provider is required"),
        ("[auth.issuer]\nusers = 'users.json'", 1, "url is required"),
        ("[auth.issuer]\nurl = 5\nusers = 'users.json'", 2, "must be a string"),
        ("[auth.issuer]\nurl = 'https://a.example'\nusers = 'users.json'\nscope = ['a']", 4, "unknown option"),
        ("[auth.issuer]\nurl = 'https://a.example'\nusers = 'users.json'\nscopes = 'a'", 4, "must be a list"),
        ("[auth.issuer]\nurl = 'https://a.example'\nusers = 'users.json'\nregistration = 'false'", 4, "true or false"),
        ("[auth.issuer]\nurl = 'https://a.example'\nusers = 'missing.json'", 3, "millstream users add"),
        ("[auth.introspection]\nclient_tokens = 'false'", 2, "true or false"),
        ("[auth.oidc]\naudience = 3", 2, "a string or a list"),
        (
            "[auth.oidc]\nscope_includes = { admin = 'read' }",
            2,
            'scope_includes.admin: it must be a list such as ["a", "b"]',
        ),
        ("[auth.oidc]\nissuer = 'https://a.example'\naudience = 'x'\nalgorithms = ['none']", 1, "isn't supported here"),
        ("[auth]\nkeys = 'missing.json'", 2, "millstream keys add"),
        ("[auth.keys]\nnamed_keys = ['a']", 2, "a table with a string or a list"),
        ("[auth.keys]\nnamed_keys = { a = '0123456789abcdef', b = '0123456789abcdef' }", 1, "have the same key"),
        ("[auth.oidc]\nissuer = 'nonsense'\naudience = 'x'", 1, "issuer must be an https URL"),
        ("[auth.oidc]\naudience = 'x'", 1, "issuer is required"),
        ("[auth.oidc]\nissuer = 'https://a.example'\naudience = 'account'", 1, "audience mapper"),
        ("[auth.oidc]\nissuer = '${NO_SUCH}'\naudience = 'x'", 2, "NO_SUCH isn't set"),
        ("[auth.keys]\nfile = 'missing.json'\nfiles = 1", 3, "unknown option"),
    ],
)
def test_configuration_errors_show_the_line_and_a_fix(text: str, line: int, hint: str, tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text('{"users": []}', "utf-8")
    with pytest.raises(ValueError, match=f"line {line}: ") as caught:
        server_of_file(write(tmp_path, text))
    assert hint.lower() in str(caught.value).lower()


@for_each(
    ("groups", "scopes", "warned"),
    [
        ((), (), ["'orders:write'", "'staff'"]), (("staff",), ("orders:write",), []), (("staff",), ("*",), []),
        (("others",), ("orders:write",), ["'staff'"]),
    ],
)  # fmt: skip
async def test_rules_that_no_user_can_satisfy_are_reported(
    groups: tuple[str, ...], scopes: tuple[str, ...], warned: list[str],
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    add_user(tmp_path, *(f"--scope={each}" for each in scopes), *(f"--group={each}" for each in groups))
    text = (
        f'[auth.issuer]\nurl = "{URL}"\nusers = "users.json"\n'
        '[policy]\nscopes = ["orders:write"]\n[policy.tools."shop_*"]\ngroups = ["staff"]\n'
    )
    with caplog.at_level(logging.WARNING):
        async with run_guarded(served(write(tmp_path, text))):
            pass
    said = [each.getMessage() for each in caplog.records if "hides items from everyone" in each.getMessage()]
    caplog.clear()
    assert len(said) == len(warned)
    assert all(any(each in text for text in said) for each in warned)


def test_rules_for_an_external_issuer_are_not_checked(tmp_path: Path) -> None:
    text = f'[auth.oidc]\nissuer = "http://127.0.0.1:1"\naudience = "{URL}/mcp"\n[policy]\ngroups = ["staff"]'
    (method,) = server_of_file(write(tmp_path, text)).definition.auth
    assert method.rights() is None


async def test_documented_gateway_file_is_served(tmp_path: Path) -> None:
    whole = (ROOT / "examples" / "gateway" / "people.toml").read_text("utf-8")
    text = whole.partition("# region: upstreams")[0] + whole.partition("# region: others")[2]
    add_user(tmp_path, "--scope", "orders:write", "--group", "finance")
    keys = tmp_path / "millstream-keys.json"
    keys.unlink(missing_ok=True)
    key = run_in_process("keys", "add", "ci", "--file", str(keys)).stdout.strip()
    async with run_guarded(served(write(tmp_path, text))) as world:
        for credential in (await signed_in(world), key):
            assert (await world.ask(credential, "POST", "/mcp", LIST, **JSON)).status == 200


async def test_people_can_sign_in_at_the_gateway_of_a_team_beside_keys(tmp_path: Path) -> None:
    recipes = ROOT / "examples" / "recipes"
    settings, _, _ = (recipes / "team.toml").read_text("utf-8").partition("[upstreams.shop]")
    add_user(tmp_path, "--scope", "orders:write")
    key = run_in_process("keys", "add", "ada", "--file", str(tmp_path / "millstream-keys.json")).stdout.strip()
    people = (recipes / "team-people.toml").read_text("utf-8")
    async with run_guarded(served(write(tmp_path, settings + people))) as world:
        for credential in (await signed_in(world), key):
            assert (await world.ask(credential, "POST", "/mcp", LIST, **JSON)).status == 200


def test_company_example_grants_the_scope_for_orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTRA_ID", "the-client")
    monkeypatch.setenv("ENTRA_SECRET", "the-secret")
    file = Path(shutil.copy(ROOT / "examples" / "gateway" / "company.toml", tmp_path))
    method: Any = server_of_file(file).definition.auth[0]
    upstream = method.config.upstreams["openid"]
    assert upstream.allowlist.find((), "Ada")[0] == ("orders:write",)


SETS = """
name = "tools"

[upstreams.files]
command = ["{python}", "{program}"]
start_timeout = 60

[sets.readers]
upstreams = ["files"]
allow = ["files_read"]
instructions = "Only read."
short_names = true

[sets.writers]
path = "/write"
deny = ["*_read"]

[sets.writers.tools.files_delete]
description = "Delete a file for good."
hidden = {{ force = true }}
"""
FILES_PROGRAM = """
from millstream import Server
mcp = Server("files")

@mcp.tool
async def read(path: str) -> str:
    return "text of " + path

@mcp.tool
async def delete(path: str, force: bool = False) -> str:
    return f"deleted {path} {force}"

mcp.run("stdio")
"""


@pytest.mark.server
async def test_sets_in_a_file_share_the_process_of_their_upstream(tmp_path: Path) -> None:
    program, file = tmp_path / "files.py", tmp_path / "gateway.toml"
    program.write_text(FILES_PROGRAM)
    file.write_text(SETS.format(python=sys.executable, program=program))
    mcp = server_of_file(file)
    async with serve(mcp) as running:
        base = f"http://127.0.0.1:{running.port}"
        async with Client(f"{base}/mcp/readers", timeout=WAIT) as client:
            assert client.instructions == "Only read."
            assert [each.name for each in await client.tools()] == ["read"]
            assert (await client.call("read", path="a")).text == "text of a"
        async with Client(f"{base}/write", timeout=WAIT) as client:
            (tool,) = await client.tools()
            assert tool.description == "Delete a file for good."
            assert (await client.call("files_delete", path="a")).text == "deleted a True"
        runtime = mcp.runtimes.current
        assert runtime is not None
        (report,) = runtime.host.gateway.describe()
        assert report["processes"]["running"] == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[sets.a]\nallowed = []", "allow"),
        ("[sets.a]\nname = 'b'", "unknown option"),
        ("[sets.a]\nallow = 'x'", "a list"),
        ("[sets.a]\npath = 'x'", "path can't be 'x'"),
        ("[sets.a.tools.x]\nlimit = '1/hour'", "can't differ between addresses"),
        ("[sets.'a b']", "name can't be 'a b'"),
        ("[sets.a]\npath = '/sse'", "serves it already"),
    ],
)
def test_mistakes_in_sets_are_explained(text: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"[upstreams.files]\ncommand = 'true'\n{text}\n")
    with pytest.raises(ValueError, match=hint) as caught:
        server_of_file(file)
    assert "gateway.toml" in str(caught.value)


@pytest.mark.server
async def test_documented_sets_have_the_same_items_in_a_file_and_in_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "examples" / "gateway", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    servers = server_of_file(tmp_path / "sets.toml"), run_path("sets.py")["mcp"]
    for mcp in servers:
        async with serve(mcp) as running:
            found = {}
            for name in ("readers", "buyers", "warehouse"):
                async with Client(f"http://127.0.0.1:{running.port}/mcp/{name}", timeout=WAIT) as client:
                    found[name] = [each.name for each in await client.tools()]
                    if name == "buyers":
                        bought = await client.call("buy", isbn="9780261103573")
                        assert bought.text.startswith("Ordered 9780261103573 for company")
                    else:
                        assert [each.uri for each in await client.resources()] == ["stock://warehouse/empty"]
        assert found == {
            "readers": ["shop_search_books", "warehouse_count"],
            "buyers": ["shop_search_books", "buy"],
            "warehouse": ["count"],
        }
    assert servers[0].definition.sets == [structs.replace(each, path="") for each in servers[1].definition.sets]


@pytest.mark.parametrize(
    ("file", "upstreams", "expected"),
    [
        (
            "from_litellm.toml",
            {
                "github": ["list_issues", "add_issue_comment", "pull_request_read", "pull_request_review_write"],
                "deepwiki": ["ask_question", "read_wiki_structure"],
            },
            {
                "/mcp/triage": ["github_list_issues", "github_add_issue_comment"],
                "/mcp/review": [
                    "github_pull_request_read", "github_pull_request_review_write", "deepwiki_ask_question",
                ],
                "/mcp/research": ["deepwiki_ask_question", "deepwiki_read_wiki_structure"],
                "/mcp": [
                    "github_list_issues", "github_add_issue_comment", "github_pull_request_read",
                    "github_pull_request_review_write", "deepwiki_ask_question", "deepwiki_read_wiki_structure",
                ],
            },
        ),
        (
            "from_metamcp.toml",
            {"filesystem": ["read_text_file", "write_file", "move_file"], "time": ["get_current_time"]},
            {"/metamcp/development/mcp": ["read_file", "time_get_current_time"]},
        ),
    ],
)  # fmt: skip
async def test_configurations_of_other_gateways_move_to_sets(
    file: str, upstreams: dict[str, list[str]], expected: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "x")
    config = server_of_file(ROOT / "examples" / "gateway" / file).definition
    scopes = [scope for each in config.sets for scope in each.scopes]
    keys = {"all": ("a-key-with-all-scopes", scopes), "none": ("a-key-without-scopes", ())}
    mcp = Server("gateway", auth=auth.keys(named_keys=keys))
    assert [each.name for each in config.upstreams] == [*upstreams]
    for name, tools in upstreams.items():
        upstream = Server(name)
        for tool in tools:
            upstream.tool(lambda: "done", name=tool)
        mcp.upstream(name, upstream, start_timeout=WAIT)
    for chosen in config.sets:
        mcp.definition.add_set(chosen)
    async with serve(mcp) as running:
        for path, names in expected.items():
            url = f"http://127.0.0.1:{running.port}{path}"
            async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {keys['all'][0]}"}) as client:
                assert [each.name for each in await client.tools()] == names
                assert (await client.call(names[0])).text == "done"
            if scopes:
                with pytest.raises(AccessDenied, match="403"):
                    async with Client(url, timeout=WAIT, headers={"authorization": f"Bearer {keys['none'][0]}"}):
                        pass


def test_named_file_that_cannot_be_read_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when root created the key file of a gateway that runs as another user."""
    (keys := tmp_path / "keys.json").write_text("{}")
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == keys:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    file = write(tmp_path, '[settings]\nauth_keys = "keys.json"')
    with pytest.raises(ConfigError, match=r"keys\.json can't be read: Permission denied\."):
        server_of_file(file)
