"""Names in the policy for all upstreams."""

import pytest

from millstream import Client, Server
from millstream.gateway import ToolPolicy, UpstreamPolicy
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
