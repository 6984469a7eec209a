"""Names in the policy for all upstreams."""

import pytest

from millstream import Client, Server
from millstream.gateway import GroupPolicy, ToolPolicy, UpstreamPolicy
from patience import WAIT


async def test_misspelled_names_in_the_policy_for_all_upstreams_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    shop = Server("shop")
    shop.tool(lambda: "ordered", name="order")
    shared = UpstreamPolicy(deny=("shop_delet",), tools={"shop_ordr": ToolPolicy(approve=True)})
    front = Server("front")
    front.upstream("shop", shop, policy=UpstreamPolicy(shared=shared), start_timeout=WAIT)
    async with Client(front) as client:
        await client.tools()
    for name in "shop_ordr", "shop_delet":
        assert name in caplog.text


async def test_names_are_compared_with_those_of_all_upstreams(caplog: pytest.LogCaptureFixture) -> None:
    shared = UpstreamPolicy(
        deny=("a_order", "b_order", "b_browse", "c_*", "shop://a/stock"),
        tools={"a_ordr": ToolPolicy(tags=("books",))},
        groups={"staff": GroupPolicy(allow=("b_ordr",)), "*": GroupPolicy()},
    )
    front, own = Server("front"), UpstreamPolicy(tools={"order": ToolPolicy(name="browse")}, shared=shared)
    for name in "a", "b":
        shop = Server(name)
        shop.tool(lambda: "ordered", name="order")
        front.upstream(name, shop, policy=own, start_timeout=WAIT)
    async with Client(front) as client:
        await client.tools()
        for shop in [each.target for each in front.definition.upstreams]:
            shop.tool(lambda: "sold", name="sell")
            await client.tools()
    found = [each.getMessage() for each in caplog.records if "shared policy" in each.getMessage()]
    assert sorted(found) == [
        "a: the shared policy has a rule for 'a_ordr', which no tool or prompt has. Did you mean 'a_order'?",
        # After a change of names, patterns still match the upstream's own name.
        "a: the shared policy has a rule for 'b_browse', which no tool or prompt has.",
        "a: the shared policy has a rule for 'b_ordr', which no tool or prompt has. Did you mean 'b_order'?",
    ]


async def test_names_are_not_judged_before_all_lists_have_arrived(caplog: pytest.LogCaptureFixture) -> None:
    shop, shared = Server("shop"), UpstreamPolicy(deny=("late_order", "shop_delet"))
    shop.tool(lambda: "ordered", name="order")
    front = Server("front")
    front.upstream("shop", shop, policy=UpstreamPolicy(shared=shared), start_timeout=WAIT)
    front.upstream("late", ["no-such-program"], policy=UpstreamPolicy(shared=shared), start_timeout=WAIT)
    async with Client(front) as client:
        assert [each.name for each in await client.tools()] == ["shop_order"]
    assert "shared policy" not in caplog.text
