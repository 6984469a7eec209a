import subprocess
import sys

import httpx2
import pytest

from examples.coming_from import books, items, shop, test_shop
from millstream.client import Question
from millstream.testing import connect
from patience import WAIT
from scripts.docs import ROOT, blocks


@pytest.mark.server
def test_official_sdk_column_runs() -> None:
    text = (ROOT / "docs" / "coming-from" / "official-sdk.md").read_text("utf-8")
    program = "\n\n".join(block.body for block in blocks(text) if block.language == "text")
    program += "\nimport asyncio\nasyncio.run(test_search())\n"
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=3 * WAIT, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_our_column_behaves_the_same() -> None:
    await test_shop.test_search()
    asked: list[str] = []

    def elicit(question: Question) -> dict[str, str]:
        asked.append(question.message)
        return {"street": "Hobbit Lane 1", "city": "Oxford"}

    for mcp in (shop.mcp, books.mcp):
        async with connect(mcp, elicit=elicit) as client:
            assert (await client.call("order", isbn="7")).text == "7 goes to Oxford"
    assert asked == ["Where to?"] * 2
    async with connect(books.mcp, elicit=lambda question: "decline") as client:
        assert (await client.call("order", isbn="7")).text == "Nothing ordered."


async def test_function_can_be_route_and_tool() -> None:
    transport = httpx2.ASGITransport(items.app)
    async with (
        items.app.router.lifespan_context(items.app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        assert (await http.get("/items/7")).json() == {"name": "Item 7"}
    async with connect(items.mcp) as client:
        assert (await client.call("get_item", item_id=7)).data == {"name": "Item 7"}
