"""The test of the shop, as the pages show it."""

from examples.coming_from.shop import mcp

# region: test
from millstream.testing import connect


async def test_search() -> None:
    async with connect(mcp) as client:
        found = await client.call("search", words="Momo", limit=1)
    assert found.data == ["Momo, volume 1"]


# endregion
