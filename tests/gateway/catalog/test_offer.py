"""What callers see is a pure function of the upstreams' lists and the rules."""

import asyncio
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from millstream import Client, Server
from millstream._gateway.catalog.catalog import Catalog, StoredCatalog
from millstream._gateway.catalog.changes import ChangeLog
from millstream._gateway.catalog.offer import Conflict, Mount, Offer, make_offer, mount
from millstream._gateway.loops import STARTING
from millstream._gateway.names import Names
from millstream._gateway.rules.policy import Policy
from millstream.client._server_messages import Change
from millstream.gateway import ToolPolicy, UpstreamPolicy
from millstream.stores import Map, MemoryMap
from patience import WAIT


def upstream(name: str, *tools: str, prefix: str = "", policy: UpstreamPolicy | None = None, **facts: Any) -> Mount:
    catalog = Catalog(revision="2026-07-28", taken_at=1.0, tools={tool: {"name": tool} for tool in tools})
    for member in ("instructions", "resources", "hints"):
        if member in facts:
            setattr(catalog, member, facts.pop(member))
    names = Names(prefix)
    return mount(name, names, Policy(policy or UpstreamPolicy(), names), catalog, "this", **facts)


def offer(*mounts: Mount, own: tuple[str, ...] = (), instructions: str = "") -> Offer:
    return make_offer(
        {each.upstream: each for each in mounts},
        gateway_id="this",
        starting=0,
        instructions=instructions,
        has_own=lambda kind, name: name in own,
    )


def test_same_lists_give_an_equal_offer() -> None:
    policy = UpstreamPolicy(tools={"a*": ToolPolicy(groups=("staff",), limit="1/minute", redact_arguments=())})
    first, second = (offer(upstream("one", "add", policy=policy), upstream("two", "add", prefix="two")) for _ in "12")
    assert first == second
    assert list(first.items["tools"]) == ["add", "two_add"]


def test_item_changes_if_only_a_rule_does() -> None:
    before, after = (offer(upstream("one", "add", policy=UpstreamPolicy(groups=(group,)))) for group in ("a", "b"))
    assert before.items["tools"]["add"] != after.items["tools"]["add"]


def test_item_of_the_first_upstream_is_offered_if_two_have_one_name() -> None:
    found = offer(upstream("one", "add"), upstream("two", "add"))
    assert found.items["tools"]["add"].upstream == "one"
    assert found.conflicts == [Conflict("tools", "add", "two", "one")]


@pytest.mark.parametrize("name", ["_files_read.", "\u0301files_read", "\uff46iles_read", "files_" + "x" * 80])
def test_cut_name_does_not_begin_with_the_prefix_of_another_upstream(name: str) -> None:
    found = offer(upstream("other", name, "add"), upstream("files", "read", prefix="files"))
    assert list(found.items["tools"]) == ["add", "files_read"]
    ((source, warning),) = found.warnings
    assert source == "other"
    assert "its prefix belongs to the upstream files" in warning


def test_two_spellings_of_one_uri_are_one_resource() -> None:
    mounts = [
        upstream(name, resources={uri: {"uri": uri, "name": "x"}}) for name, uri in (("a", "x://H/1"), ("b", "x://h/1"))
    ]
    assert list(offer(*mounts).items["resources"]) == ["x://H/1"]


def test_longer_prefix_claims_a_name_and_the_warning_says_so() -> None:
    found = offer(upstream("short", "b_c", prefix="a"), upstream("long", prefix="a_b"))
    assert not found.items["tools"]
    assert found.warnings == [("short", "skipped 'a_b_c', because its prefix belongs to the upstream long")]


def test_name_of_the_server_itself_is_a_conflict() -> None:
    assert offer(upstream("one", "add"), own=("add",)).conflicts == [Conflict("tools", "add", "one", "")]


@pytest.mark.parametrize(
    ("mounts", "tools"),
    [
        ([upstream("one", hints={"tools": (500, False)}), upstream("two", hints={"tools": (900, True)})], (500, True)),
        ([upstream("one", hints={"tools": (500, False)}, is_asked=True)], (500, False)),
        ([upstream("one", is_asked=True)], (0, False)),
    ],
    ids=["shortest and private", "asked with a hint", "asked without"],
)
def test_cache_hints_are_the_strictest(mounts: list[Mount], tools: tuple[int, bool]) -> None:
    assert offer(*mounts).hints["tools"] == tools


def test_instructions_name_the_upstream_with_a_prefix() -> None:
    found = offer(
        upstream("one", instructions="Ask."), upstream("two", prefix="b", instructions="Wait."), instructions="Hi."
    )
    assert "\n\n".join(each.text for each in found.instructions) == "Hi.\n\nAsk.\n\ntwo (names begin with b_):\nWait."
    assert found.announcement == {"id": "this", "upstreams": {}, STARTING: 0}


async def test_lists_are_in_configuration_order() -> None:
    first, second, gateway = Server("first"), Server("second"), Server("gateway")
    second.tool(lambda: "two", name="two")
    gateway.upstream("first", first)
    gateway.upstream("second", second)
    gateway.tool(lambda: "own", name="own")
    async with asyncio.timeout(WAIT), Client(gateway, timeout=WAIT) as client, client.watch(tools=True) as changes:
        assert [tool.name for tool in await client.tools()] == ["own", "second_two"]
        first.tool(lambda: "one", name="one")
        assert await anext(changes) == Change("tools")
        assert [tool.name for tool in await client.tools(fresh=True)] == ["own", "first_one", "second_two"]


async def test_resources_of_two_upstreams_have_different_names() -> None:
    gateway = Server("gateway")
    for name in ("first", "second"):
        shop = Server(name)
        shop.resource("note://counter", name="counter")(lambda: "1")
        shop.resource("book://{author}", name="book")(lambda author: author)
        gateway.upstream(name, shop)
    async with Client(gateway, timeout=WAIT) as client:
        assert [each.name for each in await client.resources()] == ["first_counter", "second_counter"]
        assert [each.name for each in await client.templates()] == ["first_book", "second_book"]


def change_log(kv: Map) -> ChangeLog:
    stored: Any = SimpleNamespace(kv=kv, shared=True, time=time.time)
    return ChangeLog("shop", StoredCatalog(stored, "front", "shop", "http://shop"), lambda *_: True)


def listing(description: str) -> Catalog:
    return Catalog(
        revision="2026-07-28", tools={"order": {"name": "order", "description": description}}, taken_at=time.time()
    )


async def test_change_is_logged_by_one_worker_of_a_store(caplog: pytest.LogCaptureFixture) -> None:
    kv = MemoryMap(time.time, 1 << 20)
    logs = [change_log(kv) for _ in range(3)]
    for before, after in pairwise(["Order.", "Order two.", "Order.", "Order two."]):
        for each in logs[:2]:  # at the same time
            await each.record(listing(before), listing(after))
        await logs[0]._stored.save(listing(after), last_at=0.0)
        await logs[2].record(listing(before), listing(after))  # later
    assert len(caplog.records) == 3
    assert sum(each.count for each in logs) == 3


async def test_definition_that_always_changes_is_called_restless_once(caplog: pytest.LogCaptureFixture) -> None:
    only, before = change_log(MemoryMap(time.time, 1 << 20)), listing("Order a book.")
    for number in range(9):
        after = listing(f"Order a book. It's {number} o'clock.")
        if number == 8:
            after.tools["new"] = {"name": "new", "description": "Be new."}
        await only.record(before, after)
        before = after
    texts = [each.getMessage() for each in caplog.records]
    assert len(texts) == 5
    assert texts[3].endswith("tool 'order' changes with every list, so its changes aren't logged any more")
    assert texts[4].endswith("new tool 'new': 'Be new.'")


def many(count: int, description: str) -> Catalog:
    tools = {f"tool{number}": {"name": f"tool{number}", "description": description} for number in range(count)}
    return Catalog(revision="2026-07-28", tools=tools, taken_at=time.time())


async def test_ten_changes_are_named_and_others_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    for count in (10, 11):
        await change_log(MemoryMap(time.time, 1 << 20)).record(many(count, "Order."), many(count, "Cancel."))
    ten, eleven = (each.getMessage() for each in caplog.records)
    assert ten.count("description is now") == eleven.count("description is now") == 10
    assert "more" not in ten
    assert eleven.endswith("; and 1 more")
