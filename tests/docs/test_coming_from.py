"""The pages for those who come from other packages: both columns run."""

import subprocess
import sys

import httpx2
import pytest

from examples.coming_from import items, shop, test_shop
from millstream.testing import connect
from patience import WAIT
from scripts.docs import ROOT, blocks

PYTHONS = {"fastmcp": str(ROOT / ".venv-foreign" / "bin" / "python"), "official-sdk": sys.executable}
"""The page -> the Python that has the other package."""
CALLS = {
    "fastmcp": """
async def main():
    await test_search()
    async with Client(mcp) as client:
        assert {tool.name for tool in await client.list_tools()} == {"search", "order", "stock_count"}
""",
    "official-sdk": """
async def main():
    await test_search()
""",
}


@pytest.mark.server
@pytest.mark.parametrize("page", PYTHONS)
def test_the_column_of_the_other_package_runs_there(page: str) -> None:
    """What we say of others has to be true: the text of the page, in an environment with that package."""
    text = (ROOT / "docs" / "coming-from" / f"{page}.md").read_text("utf-8")
    program = "\n\n".join(block.body for block in blocks(text) if block.language == "text")
    program += f"{CALLS[page]}\nimport asyncio\nasyncio.run(main())\n"
    done = subprocess.run(
        [PYTHONS[page], "-"], input=program, capture_output=True, text=True, timeout=3 * WAIT, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_our_column_does_the_same() -> None:
    """The shop: a tool, a question, a mounted server."""
    await test_shop.test_search()
    asked: list[str] = []

    def elicit(message: str, schema: object) -> dict[str, str]:
        asked.append(message)
        return {"street": "Hobbit Lane 1", "city": "Oxford"}

    async with connect(shop.mcp, elicit=elicit) as client:
        assert (await client.call("order", isbn="7")).text == "7 goes to Oxford"
        assert (await client.call("stock_count", isbn="7")).text == "1"
    assert asked == ["Where to?"]


@pytest.mark.parametrize(("key", "status"), [("a-long-key-of-ada", 200), ("another", 403), ("", 401)])
async def test_keys_let_in_whom_they_name(key: str, status: int) -> None:
    """The part of the page about keys."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "books", "arguments": {}}}
    async with shop.safe.lifespan():
        transport = httpx2.ASGITransport(shop.safe)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            reply = await http.post("/mcp", json=message, headers=headers)
    assert reply.status_code == status
    assert ("Momo" in reply.text) == (status == 200)


async def test_a_function_is_a_route_and_a_tool() -> None:
    """The page for those who come from FastAPI-MCP."""
    transport = httpx2.ASGITransport(items.app)
    async with (
        items.app.router.lifespan_context(items.app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        assert (await http.get("/items/7")).json() == {"name": "Item 7"}
    async with connect(items.mcp) as client:
        assert (await client.call("get_item", item_id=7)).structured == {"name": "Item 7"}
