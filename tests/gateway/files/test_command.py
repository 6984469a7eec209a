import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from account_parts import KeyFile
from command_line import Result, run_in_process
from millstream import Client
from patience import WAIT
from processes import ROOT, free_port, run_server

pytestmark = pytest.mark.server

COMMAND = [sys.executable, "-m", "millstream", "gateway"]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT, cwd=ROOT, check=False)


def accept(file: Path, *arguments: str) -> Result:
    return run_in_process("gateway", "accept", str(file), *arguments)


async def test_example_follows_its_policy(tmp_path: Path) -> None:
    pytest.importorskip("re2")
    keys, port = KeyFile(tmp_path / "keys.json"), free_port()
    key = keys.add("ada", ("orders:write",), 0, None)
    poor = keys.add("bob", (), 0, None)
    file, shop = tmp_path / "gateway.toml", ROOT / "examples" / "gateway" / "shop.py"
    text = (shop.parent / "gateway.toml").read_text("utf-8").replace("millstream-keys.json", str(keys.path))
    file.write_text(text.replace("shop.py", str(shop)), "utf-8")
    command = [*COMMAND, str(file), "--port", str(port)]
    with run_server(command, port, tmp_path / "log", PATH=PATH):
        url = f"http://127.0.0.1:{port}/mcp"
        async with Client(url, headers={"authorization": f"Bearer {key}"}, timeout=WAIT) as client:
            while not (tools := await client.tools(fresh=True)):
                pass
            assert {each.name for each in tools} == {"shop_search_books", "shop_buy", "read_resource"}
            bought = (await client.call("shop_buy", isbn="7")).text
            assert bought == "Ordered 7 for company; card [redacted] was charged."
        async with Client(url, headers={"authorization": f"Bearer {poor}"}, timeout=WAIT) as client:
            assert {each.name for each in await client.tools()} == {"shop_search_books", "read_resource"}


async def test_mcp_servers_file_works_over_stdio(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    shop = {"command": sys.executable, "args": ["examples/gateway/shop.py"]}
    file.write_text(json.dumps({"mcpServers": {"one": shop, "two": shop}}), "utf-8")
    async with Client([*COMMAND, str(file), "--transport", "stdio"], timeout=WAIT) as client:
        names = {each.name for each in await client.tools()}
        assert {"one_order", "two_order"} <= names
        assert (await client.call("two_search_books", words="x")).data == ["The book of x"]


def test_start_message_counts_upstream_items(tmp_path: Path) -> None:
    shop, port, log = tmp_path / "shop.py", free_port(), tmp_path / "log"
    shop.write_text(
        'from millstream import Server\nmcp = Server("s")\nmcp.tool(name="buy")(lambda: "")\nmcp.run("stdio")'
    )
    command = json.dumps([sys.executable, str(shop)])
    file = tmp_path / "gateway.toml"
    file.write_text(f"[upstreams.shop]\ncommand = {command}\nstart_timeout = {WAIT}\nconnect_timeout = {WAIT}\n")
    with run_server([*COMMAND, str(file), "--port", str(port)], port, log):
        pass
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert [line["message"] for line in lines if "ready" in line["message"]] == ["The upstream shop is ready: 1 tool"]
    (counts,) = [line["counts"] for line in lines if "counts" in line]
    assert (counts["upstreams"], counts["tools"]) == (1, 1)


def test_changed_definitions_are_shown_and_accepted(tmp_path: Path) -> None:
    program, file, lock = tmp_path / "shop.py", tmp_path / "gateway.toml", tmp_path / "gateway.lock"
    empty = tmp_path / "empty.toml"
    empty.touch()
    text = 'from millstream import Server\nmcp = Server("s")\n@mcp.tool\ndef buy() -> str:\n    "Buy."\n    return ""\n'
    program.write_text(f"{text}mcp.run()\n", "utf-8")
    file.write_text(f'[upstreams.shop]\ncommand = ["{sys.executable}", "{program}"]\ntrust = "pin"\n', "utf-8")
    asked = accept(file, "shop")
    assert asked.exit_code == 1
    assert '"description": "Buy."' in asked.stdout
    assert "again with --yes" in asked.stderr
    assert not lock.exists()
    assert "Accepted buy." in accept(file, "shop", "--yes").stdout
    assert json.loads(lock.read_text("utf-8"))["shop"]["tools"]["buy"]["description"] == "Buy."
    assert accept(file, "shop").stdout == "Nothing has changed.\n"
    assert json.loads(accept(file, "shop", "--json").stdout) == {"changed": [], "written": False}
    program.write_text(text.replace("Buy.", r"Buy all.\x1b[2J") + "mcp.run()\n", "utf-8")
    changed = accept(file, "shop", "buy", "--yes").stdout
    assert '-  "description": "Buy."' in changed
    assert "\x1b" not in changed
    for words, reason in ((["shp"], "Did you mean 'shop'"), (["shop", "by"], "Did you mean 'buy'")):
        refused = accept(file, *words)
        assert refused.exit_code == 1, words
        assert reason.lower() in refused.stderr.lower(), refused.stderr
    for arguments, reason in (
        ((str(tmp_path / "none.toml"),), "There is no file"),
        ((str(lock),), "isn't a .toml or .json file.\n  Fix:   Use one. For a program: millstream run"),
        ((str(empty),), "Add a table such as [upstreams.files]"),
    ):
        failed = run(*arguments)
        assert failed.returncode == 1, arguments
        assert reason.lower() in failed.stderr.lower(), failed.stderr


OTHER = 'from millstream import Server\nmcp = Server("s")\n@mcp.tool\ndef {}() -> str:\n    "D."\n    return ""\n'


@pytest.mark.parametrize(
    "command",
    [
        f'"{sys.executable} own.py"',
        f'["{sys.executable}", "own.py"]',
        '"own.py"',
        '"own.py:mcp"',
        '"bin/own"',
        '["./bin/own"]',
        f'"{sys.executable} own.py"\ncwd = "."',
        '"../own.py"\ncwd = "bin"',
    ],
)
def test_commands_of_a_gateway_file_start_in_its_folder(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "conf", tmp_path / "elsewhere"
    for place, tool in ((folder, "right"), (elsewhere, "wrong")):
        (place / "bin").mkdir(parents=True)
        (place / "own.py").write_text(OTHER.format(tool) + "mcp.run('stdio') if __name__ == '__main__' else None\n")
    program = folder / "bin" / "own"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} own.py\n")
    program.chmod(0o755)
    (folder / "gateway.toml").write_text(f"[upstreams.own]\ncommand = {command}\n")
    monkeypatch.chdir(elsewhere)
    listed = run_in_process("list", "../conf/gateway.toml", "--json")
    assert [each["name"] for each in json.loads(listed.stdout)["tools"]] == ["own_right"], listed


def test_log_names_program_and_folder_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit(7)")
    file, port, log = tmp_path / "gateway.toml", free_port(), tmp_path / "log"
    file.write_text(
        f"[upstreams.fails]\ncommand = ['{sys.executable}', 'fails.py']\n[upstreams.gone]\ncommand = 'bin/gone'\n"
    )
    with run_server([*COMMAND, str(file), "--port", str(port)], port, log):
        while (text := log.read_text("utf-8")).count("bin/gone") < 1 or "exited with code" not in text:
            pass
    place = f"{sys.executable} in {tmp_path}"
    assert re.search(rf"fails: started process \d+, {re.escape(place)}\W", text)
    assert re.search(rf"fails: process \d+ exited with code 7 \({re.escape(place)}\)", text)
    assert f"There is no program '{tmp_path}/bin/gone'." in text


def test_command_of_a_shared_json_file_starts_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "conf", tmp_path / "elsewhere"
    for place, tool in ((folder, "beside"), (elsewhere, "current")):
        place.mkdir()
        (place / "own.py").write_text(OTHER.format(tool) + "mcp.run('stdio') if __name__ == '__main__' else None\n")
    own = {"command": sys.executable, "args": ["own.py"]}
    (folder / "mcp.json").write_text("// comment\n" + json.dumps({"mcpServers": {"own": own}}))
    monkeypatch.chdir(elsewhere)
    listed = run_in_process("list", str(folder / "mcp.json"), "--json")
    assert [each["name"] for each in json.loads(listed.stdout)["tools"]] == ["own_current"]
