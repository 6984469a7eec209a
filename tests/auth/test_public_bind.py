import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import for_each
from millstream import Server, Settings, auth
from millstream._app.server_process import CommandError
from millstream._app.server_process.listen_sockets import check_public
from millstream._config import VariableError
from millstream._protocol.errors import LocalError
from patience import WAIT

PUBLIC = ["0.0.0.0", "::", "", "192.0.2.1", "example.com"]  # noqa: S104
HERE = ["127.0.0.1", "::1", "localhost", "127.1.2.3"]
LONG = "a-key-that-is-long-enough"


@for_each("host", PUBLIC)
def test_public_bind_without_auth_is_rejected_with_both_fixes(host: str) -> None:
    with pytest.raises(CommandError) as refused:
        check_public(Server("s", settings=Settings()).definition, host)
    assert "--auth-keys" in refused.value.fix
    assert "--allow-anonymous" in refused.value.fix


@for_each("host", PUBLIC + HERE)
def test_auth_or_explicit_consent_allows_a_public_bind(host: str) -> None:
    for server in (
        Server("s", auth=auth.keys(LONG), settings=Settings()),
        Server("s", settings=Settings(auth_key=LONG)),
        Server("s", settings=Settings(allow_anonymous=True)),
    ):
        check_public(server.definition, host)


@for_each("host", HERE)
def test_loopback_bind_needs_no_auth(host: str) -> None:
    check_public(Server("s", settings=Settings()).definition, host)
    check_public(Server("s", settings=Settings(auth_key="short")).definition, host)


@for_each("host", PUBLIC)
def test_guessable_keys_are_rejected_on_a_public_bind(host: str) -> None:
    with pytest.raises(CommandError, match="too short"):
        check_public(Server("s", settings=Settings(auth_key="my_secret_key")).definition, host)


@for_each("host", PUBLIC + HERE)
def test_paths_are_rejected_as_keys(host: str) -> None:
    with pytest.raises(CommandError, match="path of a file") as refused:
        check_public(Server("s", settings=Settings(auth_key="config/production/keys.json")).definition, host)
    assert "--auth-keys FILE" in refused.value.fix


@for_each("name", ["MCP_SERVER_AUTH_KEY", "MILLSTREAM_AUTH_KEY", "MILLSTREAM_AUTH_KEYS"])
@for_each("value", ["", " "])
def test_placeholder_variables_prevent_startup(name: str, value: str) -> None:
    with pytest.raises(VariableError, match=f"{name} is empty"):
        Settings.load({name: value})


def test_prefixed_key_variable_takes_precedence() -> None:
    assert Settings.load({"MCP_SERVER_AUTH_KEY": "a"}).auth_key == "a"
    assert Settings.load({"MCP_SERVER_AUTH_KEY": "a", "MILLSTREAM_AUTH_KEY": "b"}).auth_key == "b"


@pytest.mark.server
@pytest.mark.parametrize("program", [
    ["-c", "from millstream._cli import main; main()", "run", "FILE", "--host", "0.0.0.0"],  # noqa: S104
    ["-c", "import runpy; runpy.run_path('FILE')['mcp'].run('http', host='0.0.0.0')"],
])  # fmt: skip
def test_command_and_run_reject_public_bind_without_auth(program: list[str], tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text("from millstream import Server\nmcp = Server('shop')\n", "utf-8")
    command = [sys.executable, *(part.replace("FILE", str(file)) for part in program)]
    environment = {**os.environ, "MILLSTREAM_PORT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=WAIT, check=False)
    assert done.returncode == 1
    assert b"--allow-anonymous" in done.stderr


@for_each("depth", [1, 2])
async def test_mounting_does_not_remove_authentication(depth: int) -> None:
    inner = Server("inner", auth=auth.keys(LONG), settings=Settings())
    outer = inner
    for number in range(depth):
        above = Server(f"outer{number}", settings=Settings())
        above.mount(outer, prefix=f"p{number}")
        outer = above
    async with outer.running() as runtime:  # stdio and in-memory connections need no authentication
        with pytest.raises(LocalError, match="'inner' has auth=…, but is mounted on 'outer0', which has none"):
            runtime.serve_http()
    guarded = Server("guarded", auth=auth.keys(LONG), settings=Settings())
    guarded.mount(inner)
    async with guarded.running() as runtime:
        runtime.serve_http()
