import json
import time
import urllib.error
import urllib.request
from contextlib import chdir
from pathlib import Path

import pytest

from command_line import run_in_process
from patience import WAIT
from processes import free_port, run_command, run_server

pytestmark = pytest.mark.server
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"who","arguments":{}}}'
PROGRAM = """
from millstream import Context, Server

mcp = Server("shop")

@mcp.tool
async def who(ctx: Context) -> str:
    return ctx.principal.subject if ctx.principal else "nobody"
"""


def keys(folder: Path, *arguments: str, fails: bool = False) -> tuple[str, str]:
    """Run the command in a folder, and return its output and its error output."""
    with chdir(folder):
        done = run_in_process("keys", *arguments)
    assert (done.exit_code != 0) == fails, done.stderr
    return done.stdout.strip(), done.stderr


def status(port: int, key: str | None, body: bytes = CALL) -> tuple[int, str]:
    """Return the status and the response of a call."""
    headers = {"content-type": "application/json", **({} if key is None else {"authorization": f"Bearer {key}"})}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/mcp", body, headers)
    try:
        with urllib.request.urlopen(asked, timeout=WAIT) as reply:  # noqa: S310
            return reply.status, json.load(reply)["result"]["content"][0]["text"]
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """Write a program, and return its path."""
    (tmp_path / "shop.py").write_text(PROGRAM, "utf-8")
    return str(tmp_path / "shop.py")


def test_keys_from_command_line_and_environment_protect_a_server(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (["--auth", "my_secret_key"], []):
        if not given:
            monkeypatch.setenv("MCP_SERVER_AUTH_KEY", "my_secret_key")
        port = free_port()
        with run_server(run_command(shop, port, *given), port, tmp_path / "log"):
            assert status(port, None)[0] == 401
            assert status(port, "my_super_secret_key")[0] == 403
            assert status(port, "my_secret_key") == (200, "key")
        log = (tmp_path / "log").read_text("utf-8")
        assert "my_secret_key" not in log
        assert "my_super_secret_key" not in log


def test_key_commands_work_beside_a_running_server(shop: str, tmp_path: Path) -> None:
    first, said = keys(tmp_path, "add", "first", "--scope", "orders:write", "--days", "30")
    assert "won't be shown again" in said
    port, file = free_port(), str(tmp_path / "millstream-keys.json")
    with run_server(run_command(shop, port, "--auth-keys", file), port, tmp_path / "log"):
        assert status(port, first) == (200, "first")
        second, _ = keys(tmp_path, "add", "second")
        until(port, second, 200)
        third, _ = keys(tmp_path, "rotate", "second", "--grace", "0")
        until(port, second, 403)
        assert status(port, third) == (200, "second")
        _, said = keys(tmp_path, "change", "second", "--scope", "a", "--scope", "b")
        assert said == "second now has the scopes a, b and no groups.\n"
        until(port, third, 200)
        keys(tmp_path, "revoke", "second")
        until(port, third, 403)
    listed, _ = keys(tmp_path, "list")
    (line,) = listed.splitlines()
    name, scopes, groups, since, expires = line.split("\t")
    assert (name, scopes, groups, since < expires) == ("first", "orders:write", "no groups", True)
    assert first not in listed


def until(port: int, key: str, wanted: int) -> None:
    """Repeat a call until it gets a status. Unknown keys are throttled, so wait for that, too."""
    deadline = time.monotonic() + WAIT
    while status(port, key)[0] != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("revoke", "nobody"), "There is no key 'nobody'"),
        (("rotate", "nobody"), "There is no key 'nobody'"),
        (("change", "nobody", "--scope", "a"), "There is no key 'nobody'"),
        (("add", "a b"), "isn't a valid key name"),
        (("add", "x", "--scope", "a b"), "isn't a valid scope"),
        (("list",), "keys add"),
        (("list", "--file", "none/at/all.json"), "can't be read"),
    ],
)
def test_invalid_key_commands_are_explained(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    _, said = keys(tmp_path, *arguments, fails=True)
    assert text in said
    assert "Traceback" not in said


def test_key_names_are_unique(tmp_path: Path) -> None:
    keys(tmp_path, "add", "ci")
    _, said = keys(tmp_path, "add", "ci", fails=True)
    assert "already" in said


def test_keys_can_be_listed_as_json(tmp_path: Path) -> None:
    added = json.loads(keys(tmp_path, "add", "ada", "--scope", "a", "--json")[0])
    rotated = json.loads(keys(tmp_path, "rotate", "ada", "--grace", "2", "--json")[0])
    assert (added["name"], rotated["graceHours"]) == ("ada", 2)
    assert added["key"] != rotated["key"]
    changed = json.loads(keys(tmp_path, "change", "ada", "--scope", "b", "--group", "staff", "--json")[0])
    assert changed == {"changed": "ada", "scopes": ["b"], "groups": ["staff"]}
    listed = json.loads(keys(tmp_path, "list", "--json")[0])["keys"]
    assert [(each["name"], each["scopes"], each["groups"]) for each in listed] == [("ada", ["b"], ["staff"])] * 2
    assert {each["expires"] is None for each in listed} == {True, False}
    assert json.loads(keys(tmp_path, "revoke", "ada", "--json")[0]) == {"revoked": "ada"}
    assert json.loads(keys(tmp_path, "list", "--json")[0]) == {"keys": []}
