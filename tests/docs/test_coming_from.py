import inspect
import re
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from mcp import Client as SdkClient
from mcp.shared.exceptions import NoBackChannelError
from mcp_types import ElicitResult

from examples.coming_from import books, items, shop, test_shop
from millstream import Context, Server
from millstream.client import Question
from millstream.testing import connect
from patience import WAIT
from scripts.docs import ROOT, blocks


@pytest.mark.server
def test_code_in_the_official_sdk_column_runs() -> None:
    text = (ROOT / "docs" / "coming-from" / "official-sdk.md").read_text("utf-8")
    program = "\n\n".join(block.body for block in blocks(text) if block.language == "text")
    program += "\nimport asyncio\nasyncio.run(test_search())\n"
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=3 * WAIT, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_millstream_column_behaves_like_the_sdk_column() -> None:
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


async def test_questions_in_the_comparison_behave_as_described() -> None:
    """The columns of the other package, with its client's default and with a client of 2025-11-25."""
    text = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    program: dict[str, Any] = {}
    exec("\n\n".join(block.body for block in blocks(text) if block.language == "text"), program)  # noqa: S102

    async def answer(context: object, params: object) -> ElicitResult:
        return ElicitResult(action="accept", content={"street": "Hobbit Lane 1", "city": "Oxford"})

    async def call(name: str, **options: str) -> str:
        async with SdkClient(program["mcp"], elicitation_callback=answer, **options) as client:  # type: ignore[arg-type]
            assert client.protocol_version == ("2025-11-25" if options else "2026-07-28")
            try:
                result = await client.call_tool(name, {"isbn": "7"})
            except NoBackChannelError as exc:
                return str(exc)
            return result.content[0].text  # type: ignore[union-attr]

    assert await call("order", mode="legacy") == "7 goes to Oxford"
    assert await call("order_when_asked", mode="legacy") == "7 goes to Oxford"
    assert await call("order_when_asked") == "7 goes to Oxford"
    failed = await call("order")
    assert f"an error: {failed.partition(': ')[2].removesuffix('.')} <!--" in text
    async with connect(books.mcp, elicit=lambda question: {"street": "Hobbit Lane 1", "city": "Oxford"}) as client:
        assert client.revision == "2026-07-28"
        assert (await client.call("order", isbn="7")).text == "7 goes to Oxford"


async def test_one_function_can_be_both_a_route_and_a_tool() -> None:
    transport = httpx2.ASGITransport(items.app)
    async with (
        items.app.router.lifespan_context(items.app),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
    ):
        assert (await http.get("/items/7")).json() == {"name": "Item 7"}
    async with connect(items.mcp) as client:
        assert (await client.call("get_item", item_id=7)).data == {"name": "Item 7"}


NAMES = re.compile(r"FastMCP\((\w+)=|\bmcp\.(\w+)\(|ctx\.(\w+)|`(get_\w+)\(\)`|^\| `(\w+)=", re.MULTILINE)


def test_errors_suggest_a_replacement_for_each_name_on_the_fastmcp_page() -> None:
    """A name either works here, or its error says what to write."""
    text = (ROOT / "docs" / "coming-from" / "fastmcp.md").read_text("utf-8").partition("### Sign-in")[0]
    left = "\n".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `"))
    silent: list[str] = []
    for option, method, attribute, function, tool_option in NAMES.findall(left):
        try:
            if option and option not in inspect.signature(Server).parameters:
                Server("shop", **{option: None})
            elif method:
                getattr(Server("shop"), method)
            elif attribute and not hasattr(Context, attribute):
                getattr(object.__new__(Context), attribute)
            elif function:
                exec(f"from millstream import {function}")  # noqa: S102
            elif tool_option:
                Server("shop").tool(**{tool_option: None})(lambda: None)
        except (TypeError, AttributeError, ImportError) as exc:
            if not re.search(r"\. [A-Z@`].+", str(exc)):
                silent.append(str(exc))
    assert silent == []


@pytest.mark.check
def test_comparison_lists_the_measured_versions() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    lock = (ROOT / "requirements" / "bench.txt").read_text("utf-8")
    mcp1 = (ROOT / "requirements" / "mcp1.txt").read_text("utf-8")
    fastmcp, newest, older = (
        re.search(rf"^{name}==(\S+)", text, re.MULTILINE)
        for name, text in (("fastmcp", lock), ("mcp", lock), ("mcp", mcp1))
    )
    assert fastmcp is not None and newest is not None and older is not None  # noqa: PT018
    assert f"with fastmcp {fastmcp[1]} and" in page
    assert [*re.findall(r"`from \S+ import \S+` \((\S+)\)", page)] == [older[1], newest[1], fastmcp[1]]
