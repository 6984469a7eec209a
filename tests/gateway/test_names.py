import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpu import DEAR_TEXT, check_linear, repeat
from http_peer import serve
from millstream import Client, Server, Settings
from millstream._gateway.loops import CAPABILITY, MAX_LOOPS, find_loops, leads_back, read_announcement
from millstream._gateway.names import Names, ascii_name, fit_name, fold, safe_names
from millstream.client import ServerError
from millstream.gateway import ToolPolicy, UpstreamPolicy
from patience import WAIT


def test_number_of_loop_prefixes_compared_with_upstream_items_is_bounded() -> None:
    """Thousands would stop the gateway for half a minute at each refresh of a hostile upstream's lists."""
    ways = {f"p{number}": {"id": "ours"} for number in range(1900)}
    announcement = read_announcement({"experimental": {CAPABILITY: {"id": "theirs", "upstreams": ways}}}, "ours")
    loops = find_loops(announcement, "ours")
    assert len(loops) == MAX_LOOPS
    assert leads_back(loops, "tools", "p0_search")
    assert not leads_back(loops, "tools", "search")


def test_uris_without_a_scheme_get_one_and_are_found_again() -> None:
    """Clients of the official Python SDK 1.x refuse a list with a URI that has none."""
    names = Names("shop")
    for uri in ("memo://1", "urn:x:y", "not a uri", "/etc/hosts", "", ":", ":a", "data:,hi", "C:/x", "{id}"):
        listed = names.uri(uri)
        assert re.match("[A-Za-z][A-Za-z0-9+.-]*:", listed)
        assert names.original_uri(listed) == uri


def _name(number: int) -> str:
    return chr(0x4E00 + number % 20_000) + chr(0x4E00 + number // 20_000)


@pytest.mark.parametrize(
    "name",
    [
        lambda number: f"{_name(number)}xxxx",  # alike without their odd characters
        lambda number: f"a {number}",
        lambda number: f"{'a' * 70}{_name(number)}",
        lambda number: f"value_{number}" if number % 2 else _name(number),  # takes the numbers that others would get
        lambda number: "a" + "/" * (1 + number % 40) + str(number % 7) + "é" * (number // 280),
    ],
    ids=["alike", "different", "long", "taken", "mixed"],
)
def test_odd_argument_names_are_replaced_in_linear_time(name: Callable[[int], str]) -> None:
    def replace(size: int) -> dict[str, str]:
        return safe_names({"properties": {name(number): {} for number in range(size)}})

    check_linear(replace, 200)
    found = replace(200)
    assert len({*found, *map(name, range(200))} - {*found.values()}) == len({*map(name, range(200))})


LONG = "a_tool_with_a_name_of_sixty_characters_which_is_allowed_here"
ODD = (LONG, LONG + "_2", "get-item.v2", "größe", "発注")


def make_odd(policy: UpstreamPolicy | None = None, **options: Any) -> tuple[Server, Server]:
    upstream, mcp = Server("ours"), Server("front", **options)
    for name in (*ODD, "add"):
        upstream.tool(lambda name=name: name, name=name, title=name, input_schema={"type": "object"})
    mcp.upstream("ours", upstream, policy=policy, start_timeout=WAIT)
    return upstream, mcp


async def list_titles(client: Client) -> dict[str, str | None]:
    return {each.name: each.title for each in await client.tools(fresh=True)}


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_names_that_providers_refuse_are_cut_with_a_hash() -> None:
    upstream, mcp = make_odd()
    async with Client(mcp, timeout=WAIT) as client, client.watch(tools=True) as changes:
        before = await list_titles(client)
        assert before.pop("ours_add") == "add"
        assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", name) for name in before)
        assert set(before.values()) == {f"{name} (ours_{name})" for name in ODD}
        for name in ODD:
            whole = f"ours_{name}"
            assert (await client.call(fit_name(whole))).text == (await client.call(whole)).text == name
        upstream.remove_tool(LONG)
        while fit_name(f"ours_{LONG}") in (after := await list_titles(client)):
            await anext(changes)
        assert before.keys() - after.keys() == {fit_name(f"ours_{LONG}")}


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_policies_sets_and_the_audit_log_know_cut_names(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    policy = UpstreamPolicy(deny=("get-item.v2",), tools={LONG: ToolPolicy(description="Long")})
    _, mcp = make_odd(policy, settings=Settings(audit_log=str(log)))
    cut = fit_name(f"ours_{LONG}")
    mcp.add_set("/long", allow=[f"ours_{LONG}"])
    mcp.add_set("/cut", allow=[cut], short_names=True)
    mcp.add_set("/denied", deny=[f"ours_{LONG}", "ours_größe"])
    async with mcp.running(), serve(mcp) as running:
        for path, names in {
            "/mcp": {cut, "ours_add", *(fit_name(f"ours_{name}") for name in (ODD[1], *ODD[3:]))},
            "/long": {cut},
            "/cut": {LONG},
            "/denied": {"ours_add", *(fit_name(f"ours_{name}") for name in (ODD[1], ODD[4]))},
        }.items():
            async with Client(f"http://127.0.0.1:{running.port}{path}", timeout=WAIT) as client:
                assert set(await list_titles(client)) == names, path
                if path == "/denied":
                    with pytest.raises(ServerError, match="Unknown tool"):
                        await client.call(f"ours_{LONG}")
                else:
                    assert (await client.call(f"ours_{LONG}")).text == LONG
    called = [json.loads(line) for line in log.read_text().splitlines()]
    targets = [each["target"] for each in called if each["method"] == "tools/call" and "outcome" not in each]
    assert targets == [cut] * 3  # its name at the main address, also of a set with a name of its own


@pytest.mark.filterwarnings("ignore:The tool name")
@pytest.mark.parametrize("through", [True, False])
async def test_limit_of_a_tool_applies_to_each_of_its_names(through: bool) -> None:
    upstream, mcp = Server("ours"), Server("front", settings=Settings(tool_search=True))
    upstream.tool(lambda: "done", name="x" * 200)
    mcp.upstream("ours", upstream, policy=UpstreamPolicy(limit="1/hour"), start_timeout=WAIT)
    whole = f"ours_{'x' * 200}"
    async with Client(mcp, timeout=WAIT) as client:
        assert (await client.call("call_tool", {"name": whole})).text == "done"
        for name in (whole, fit_name(whole)):
            with pytest.raises(ServerError, match="Too many requests"):
                await (client.call("call_tool", {"name": name}) if through else client.call(name))


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_own_tool_keeps_its_name_when_an_upstream_has_it_too(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    upstream, mcp = Server("ours"), Server("front", settings=Settings(audit_log=str(log)))
    upstream.tool(lambda: "theirs", name="get.item")

    @mcp.tool(name="get.item")
    def get(key: str) -> str:
        return "own"

    mcp.upstream("ours", upstream, prefix="", start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        assert (await client.call("get.item", key="x" * 100_000)).text == "own"
        assert (await client.call(fit_name("get.item"))).text == "theirs"
    calls = [each for line in log.read_text().splitlines() if (each := json.loads(line))["method"] == "tools/call"]
    assert [each["target"] for each in calls if "outcome" not in each] == ["get.item", fit_name("get.item")]


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_tool_that_is_enabled_again_keeps_its_whole_name() -> None:
    _, mcp = make_odd()
    async with Client(mcp, timeout=WAIT) as client:
        assert await list_titles(client)
        mcp.disable("tool", fit_name("ours_größe"))
        with pytest.raises(ServerError, match="Unknown tool"):
            await client.call("ours_größe")
        mcp.enable("tool", fit_name("ours_größe"))
        assert (await client.call("ours_größe")).text == "größe"


@pytest.mark.filterwarnings("ignore:The tool name")
async def test_relay_keeps_names() -> None:
    upstream, _ = make_odd()
    mcp = Server("front")
    mcp.upstream("ours", upstream, prefix="", start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        assert set(await list_titles(client)) == {*ODD, "add"}


@pytest.mark.parametrize("unit", DEAR_TEXT.values(), ids=DEAR_TEXT)
def test_long_names_are_folded_in_linear_time(unit: str) -> None:
    for run in (fold, lambda name: ascii_name(name, "a-z"), lambda name: safe_names({"properties": {name: {}}})):
        check_linear(lambda size, run=run: run(repeat(unit, size)), 5_000)


def test_names_that_differ_only_in_marks_that_no_language_has_look_alike() -> None:
    assert fold("x" + "\u0301\u0316" * 20) == fold("x" + "\u0301\u0316" * 40) == "x"
