import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.feature_walk import resources, tools
from millstream._cli.load import find_command
from millstream.client import Client, Options
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server

pytestmark = pytest.mark.server

SHOP = Path(__file__).parents[2] / "client" / "shop.py"
COMMAND = f"{sys.executable} -m millstream run {SHOP} --transport stdio"


async def test_commands_are_served_over_http_and_stdio(tmp_path: Path) -> None:
    port = free_port()
    with run_server(run_command(COMMAND, port), port, tmp_path / "log"):
        url = f"http://127.0.0.1:{port}/mcp"
        again = [sys.executable, "-m", "millstream", "run", url, "--transport", "stdio"]
        for target, revision in ((url, "2025-03-26"), (url, None), (again, "2024-11-05"), (again, None)):
            async with Client(target, revision=revision, timeout=WAIT) as client:
                assert client.instructions == "Sell books."
                await resources(client)
                if revision is None:
                    await tools(client)


HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
PAST = """
import json, sys
for line in sys.stdin:
    message, listed = json.loads(line), {"tools": [{"name": "add", "inputSchema": {"type": "object"}}]}
    offer = {"protocolVersion": sys.argv[1], "capabilities": {"tools": {}}, "instructions": "Ask me first."}
    offer["serverInfo"] = {"name": "past", "title": "The past", "version": ""}
    answers = {"initialize": offer, "tools/list": listed}
    found = answers.get(message["method"])
    answer = {"error": {"code": -32601, "message": "no"}} if found is None else {"result": found}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


RUN = [sys.executable, "-m", "millstream", "run", "--transport", "stdio"]


async def test_command_from_an_older_era_announces_only_its_own_features() -> None:
    run = [*RUN, "--", sys.executable, "-c", PAST, "2025-06-18"]
    async with Client(run, revision="2026-07-28", timeout=WAIT) as client:
        assert client.capabilities.keys() & {"tools", "resources", "prompts", "completions"} == {"tools"}
        assert (client.server.name, client.server.version) == ("past", "")
        assert [tool.name for tool in await client.tools()] == ["add"]


@pytest.mark.parametrize("date", HANDSHAKE)
async def test_description_of_a_command_reaches_clients_of_each_revision(date: str) -> None:
    run = [*RUN, "--", sys.executable, "-c", PAST, date]
    for revision in HANDSHAKE:
        async with Client(run, revision=revision, timeout=WAIT) as client:
            assert client.capabilities.keys() - {"experimental"} == {"tools"}
            assert (client.server.name, client.server.version, client.instructions) == ("past", "", "Ask me first.")
            assert revision < "2025-06-18" or client.server.title == "The past"
            assert [tool.name for tool in await client.tools()] == ["add"]


async def test_one_word_programs_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "shop server"
    program.write_text(f"#!/bin/sh\nexec {COMMAND}\n", "utf-8")
    program.chmod(0o755)
    (tmp_path / "shop-server").symlink_to(program)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for target in (str(program), "shop-server"):
        async with Client([*RUN, target], timeout=WAIT, options=Options(env={"PATH": os.environ["PATH"]})) as client:
            assert (client.server.name, client.instructions) == ("shop", "Sell books.")


def test_modules_take_precedence_over_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bookshop"
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    assert find_command("bookshop")
    (tmp_path / "bookshop.py").touch()
    assert not find_command("bookshop")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no-such-program --option", "There is no program 'no-such-program'."),
        ("ftp://example.com/mcp", "ftp"),
        ("my missing.py", "There is no file my missing.py."),
    ],
)
def test_invalid_targets_are_rejected_with_a_one_line_error(target: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "millstream", "run", target], capture_output=True, timeout=WAIT, check=False, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr


async def test_documented_files_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT / "examples" / "gateway")
    for target, own in (("servers.json", {"warehouse_count"}), ("front.py", {"opening_hours"})):
        async with Client([*RUN, target], timeout=WAIT, options=Options(env={"PATH": os.environ["PATH"]})) as client:
            assert {tool.name for tool in await client.tools()} >= {"shop_order", "shop_search_books", *own}
            assert "Ordered 1 for me" in (await client.call("shop_order", isbn="1", account="me")).text
