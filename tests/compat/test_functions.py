"""How the door reads URIs for the functions of a program, describes functions, and shows what was read."""

import functools
from typing import Annotated

import pytest
from pydantic import Field

from millstream import Client
from millstream.client._errors import Failure
from millstream.compat.fastmcp import standalone


@pytest.mark.parametrize(
    ("query", "given"),
    [("", "[] None"), ("?tags=a,b", "['a', 'b'] None"), ("?tags=a%2Cb&ids=1,2", "['a,b'] [1, 2]"),
     ("?tags=a&tags=b+c", "['a', 'b c'] None"), ("?tags=", "[] None")],
)  # fmt: skip
@pytest.mark.parametrize("mounted", [False, True])
async def test_a_list_in_a_query_has_commas_between_its_items(query: str, given: str, *, mounted: bool) -> None:
    """RFC 6570 §3.2.8; a comma of an item is encoded. A name that comes several times counts each time: our choice."""
    mcp = standalone.FastMCP("shop")

    @mcp.resource("items://{kind}{?tags,ids}")
    def search(kind: str, tags: Annotated[list[str], Field(default_factory=list)], ids: list[int] | None = None) -> str:
        return f"{tags} {ids}"

    outer = standalone.FastMCP("outer")
    outer.mount(mcp, "ns")
    host, uri = (outer, "items://ns/books") if mounted else (mcp, "items://books")
    async with Client(host.engine) as client:
        assert (await client.read(uri + query))[0].text == given
    assert given in (await host.read_resource(uri + query)).contents[0].content


async def test_a_path_in_a_list_of_a_query_leads_nowhere() -> None:
    """As in any other variable: functions use values as names of files."""
    mcp = standalone.FastMCP("shop")

    @mcp.resource("items://{kind}{?tags}")
    def search(kind: str, tags: Annotated[list[str], Field(default_factory=list)]) -> str:
        raise AssertionError(tags)

    async with Client(mcp.engine) as client:
        with pytest.raises(Failure, match="not found"):
            await client.read("items://books?tags=a,..%2Fsecret")


async def test_a_partial_is_described_by_the_function_inside() -> None:
    """Not by the text of Python's class for partials."""
    mcp = standalone.FastMCP("shop")

    def multiply(x: int, y: int) -> int:
        """Multiply two numbers."""
        return x * y

    mcp.add_tool(functools.partial(multiply, y=2))
    async with Client(mcp.engine) as client:
        assert [tool.description for tool in await client.tools()] == ["Multiply two numbers."]


async def test_a_result_that_is_printed_shows_what_was_read() -> None:
    """Programs look at results with `print` and in assertions."""
    mcp = standalone.FastMCP("shop")

    @mcp.resource("data://{user-id}/profile")
    def profile(user_id: str) -> str:
        return f"profile of {user_id}"

    assert "profile of ada" in str(await mcp.read_resource("data://ada/profile"))
