"""API keys that belong to groups: what their callers see, and how their groups change."""

import json
import logging
from pathlib import Path

import pytest

from auth_world import GuardedServer, run_guarded
from command_line import run_in_process
from millstream import Server, auth
from millstream.gateway import GroupPolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT
from wire import Json, request

TABLES = UpstreamPolicy(
    groups={
        "interns": GroupPolicy(allow=("look",)),
        "finance": GroupPolicy(allow=("pay", "price://*")),
        "*": GroupPolicy(allow=("help",)),
    }
)
SEEN = {
    "ian": {"shop_help", "shop_look"},
    "fay": {"shop_help", "shop_pay"},
    "bea": {"shop_help", "shop_look", "shop_pay"},
    "nat": {"shop_help"},
    "root": {"shop_help"},
}
"""Owner of a key -> tools that the caller sees."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add_keys(file: Path) -> dict[str, str]:
    """Create the keys that the tests use, as an operator does."""
    keys = {
        name: run_in_process("keys", "add", name, "--file", str(file), *options).stdout.strip()
        for name, options in {
            "ian": ["--group", "interns"],
            "fay": ["--group", "finance", "--scope", "orders:write"],
            "bea": ["--group", "interns", "--group", "finance"],
            "nat": [],
            "root": ["--scope", "*"],
        }.items()
    }
    assert all(keys.values())
    return keys


def read_keys(file: Path) -> list[Json]:
    """Return the keys in the file."""
    keys: list[Json] = json.loads(file.read_text("utf-8"))["keys"]
    return keys


def change_groups(file: Path, name: str, *groups: str) -> None:
    """Replace a key's groups with the command, and remove its scopes."""
    options = [option for group in groups for option in ("--group", group)]
    said = run_in_process("keys", "change", name, "--file", str(file), *options).stderr
    assert said == f"{name} now has no scopes and {f'the group {groups[0]}' if groups else 'no groups'}.\n"


def make_front(file: Path, policy: UpstreamPolicy = TABLES) -> Server:
    shop = Server("shop")
    for name in "look", "pay", "help":
        shop.tool(lambda: "done", name=name)
    shop.resource("price://{isbn}")(price)
    front = Server("front", auth=auth.keys(file=file), serve="rest")
    front.upstream("shop", shop, policy=policy, start_timeout=WAIT)
    front.add_set("/finance", allow=["shop_*"], groups=["finance"])
    front.add_set("/narrow", tools={"shop_pay": ToolPolicy(groups=("finance",))})
    return front


def price(isbn: str) -> str:
    """Return a price."""
    return f"{isbn} costs 5"


async def list_tools(world: GuardedServer, key: str) -> set[str]:
    """Return the tools that a caller sees in the per-request era, after comparing them with the other interfaces."""
    listed = (await world.modern(key, "tools/list")).message["result"]["tools"]
    session = await world.initialize(key)
    names = {each["name"] for each in listed}
    reply = await world.post(key, request("tools/list", {}, 1), mcp_session_id=session)
    assert {each["name"] for each in reply.message["result"]["tools"]} == names
    rest = await world.ask(key, "POST", "/mcp/tools/list", b"{}", content_type="application/json")
    for name in "shop_look", "shop_pay", "shop_help":
        assert (f'"{name}"'.encode() in rest.body) is (name in names)
        called = await world.ask(key, "POST", f"/tools/{name}", b"{}", content_type="application/json")
        assert (called.status == 200) is (name in names)
        assert (b"done" in (await world.call(key, name)).body) is (name in names)
        call = request("tools/call", {"name": name, "arguments": {}}, 2)
        assert (b"done" in (await world.post(key, call, mcp_session_id=session)).body) is (name in names)
    return names


async def test_callers_see_what_the_groups_of_their_keys_allow(file: Path) -> None:
    keys = add_keys(file)
    async with run_guarded(make_front(file)) as world:
        for name, key in keys.items():
            assert await list_tools(world, key) == SEEN[name], name
        for name, status in (("fay", 200), ("bea", 200), ("ian", 403), ("nat", 403), ("root", 403)):
            reply = await world.ask(
                keys[name], "POST", "/finance/tools/shop_help", b"{}", content_type="application/json"
            )
            assert reply.status == status, name
        for name, status in (("fay", 200), ("ian", 404), ("root", 404)):
            reply = await world.ask(
                keys[name], "POST", "/narrow/tools/shop_pay", b"{}", content_type="application/json"
            )
            assert reply.status == status, name
        uri = {"uri": "price://shop/1"}
        for name, found in (("fay", True), ("ian", False), ("root", False)):
            reply = await world.modern(keys[name], "resources/read", uri, uri["uri"])
            assert (b"costs 5" in reply.body) is found, name


async def test_changes_to_the_groups_of_a_key_apply_to_running_servers(file: Path) -> None:
    keys = add_keys(file)
    async with run_guarded(make_front(file)) as world:
        assert await list_tools(world, keys["ian"]) == SEEN["ian"]
        session = await world.initialize(keys["ian"])
        change_groups(file, "ian", "finance")
        assert world.runtime.guard is not None
        assert world.runtime.guard.refresh()
        assert await list_tools(world, keys["ian"]) == SEEN["fay"]
        call = request("tools/call", {"name": "shop_look", "arguments": {}}, 1)
        assert b"done" not in (await world.post(keys["ian"], call, mcp_session_id=session)).body
        rotated = run_in_process("keys", "rotate", "ian", "--grace", "0", "--file", str(file)).stdout.strip()
        world.runtime.guard.refresh()
        assert await list_tools(world, rotated) == SEEN["fay"]
        change_groups(file, "fay")
        world.runtime.guard.refresh()
        assert await list_tools(world, keys["fay"]) == SEEN["nat"]


async def test_key_files_without_groups_stay_readable(file: Path) -> None:
    key = run_in_process("keys", "add", "nat", "--file", str(file)).stdout.strip()
    (stored,) = read_keys(file)
    assert stored.keys() == {"name", "hash", "created"}
    async with run_guarded(make_front(file)) as world:
        assert await list_tools(world, key) == SEEN["nat"]


async def test_groups_that_no_key_has_are_reported(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = UpstreamPolicy(tools={"pay": ToolPolicy(groups=("finance",)), "look": ToolPolicy(groups=("nobody",))})
    add_keys(file)
    with caplog.at_level(logging.WARNING):
        async with run_guarded(make_front(file, policy)):
            pass
    (said,) = [each.getMessage() for each in caplog.records if "hides items from everyone" in each.getMessage()]
    assert "'nobody'" in said
    assert "millstream keys add NAME --scope SCOPE --group GROUP" in said


def test_groups_are_listed_and_checked(file: Path) -> None:
    add_keys(file)
    lines = run_in_process("keys", "list", "--file", str(file)).stdout.splitlines()
    assert lines[2].split("\t")[:3] == ["bea", "no scopes", "interns finance"]
    listed = json.loads(run_in_process("keys", "list", "--json", "--file", str(file)).stdout)["keys"]
    assert [each["groups"] for each in listed] == [["interns"], ["finance"], ["interns", "finance"], [], []]
    for group in "*", "two words", "":
        result = run_in_process("keys", "add", "eve", "--group", group, "--file", str(file))
        assert result.exit_code != 0
        assert "isn't a valid group" in result.output
