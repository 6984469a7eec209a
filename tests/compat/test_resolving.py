"""What fills in parameters besides arguments: resolvers of SDK 2.x, hidden arguments of fastmcp 2."""

import os
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from millstream import Client
from millstream.compat.fastmcp import Context, Elicit, InvalidSignature, ListRoots, MCPServer, Resolve, standalone


class Size(BaseModel):
    size: str


def of_itself(size: "Annotated[Size, Resolve(of_itself)]") -> Size:
    return size


def of_nothing(weight: int) -> Size:
    return Size(size=str(weight))


def of_two_questions() -> Elicit[Size] | ListRoots:
    return ListRoots()


@pytest.mark.parametrize(
    ("resolver", "says"), [(of_itself, "cyclic"), (of_nothing, "weight"), (of_two_questions, "2 questions")]
)
def test_a_resolver_that_can_not_be_called_is_refused_when_the_tool_is_registered(resolver: Any, says: str) -> None:
    """SDK 2.x: InvalidSignature. A call would fail otherwise, or never end."""
    mcp: MCPServer[Any] = MCPServer("shop")

    def order(isbn: str, size: Annotated[Size, Resolve(resolver)]) -> str:
        return isbn

    with pytest.raises(InvalidSignature, match=says):
        mcp.tool()(order)


def test_a_resolver_inside_of_a_union_is_refused() -> None:
    """SDK 2.x: clients would see the parameter, and fill in what the resolver should."""
    mcp: MCPServer[Any] = MCPServer("shop")

    def order(size: Annotated[Size, Resolve(lambda: Size(size="S"))] | None) -> str:
        return ""

    with pytest.raises(InvalidSignature, match="union"):
        mcp.tool()(order)


async def test_a_resolver_runs_once_for_all_that_want_its_value() -> None:
    """SDK 2.x: one value for the call, also where another resolver wants it."""
    mcp: MCPServer[Any] = MCPServer("shop")
    runs: list[str] = []

    def login(isbn: str) -> str:
        runs.append(isbn)
        return f"ada:{isbn}"

    async def greeting(who: Annotated[str, Resolve(login)]) -> str:
        return f"Hello {who}"

    @mcp.tool()
    async def order(isbn: str, who: Annotated[str, Resolve(login)], words: Annotated[str, Resolve(greeting)]) -> str:
        return f"{words} {who}"

    async with Client(mcp.engine) as client:
        tool = (await client.tools())[0]
        assert list(tool.input_schema["properties"]) == ["isbn"]
        assert (await client.call("order", isbn="7", who="eve")).text == "Hello ada:7 ada:7"
    assert runs == ["7"]


async def test_excluded_arguments_have_their_default_and_nobody_can_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastmcp 2: exclude_args. Programs keep URLs and keys in them, with the default from the environment."""
    monkeypatch.setenv("SHOP_URL", "http://shop")
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")

    @mcp.tool(exclude_args=["url", "key", "context"])
    def order(
        isbn: str, url: str = Field(default=os.environ["SHOP_URL"]), key: str | None = None, context: object = Size
    ) -> str:
        return f"{isbn} {url} {key} {context is Size}"

    async with Client(mcp.engine) as client:
        tool = (await client.tools())[0]
        assert list(tool.input_schema["properties"]) == ["isbn"]
        assert (await client.call("order", isbn="7")).text == "7 http://shop None True"
        refused = await client.call("order", isbn="7", url="http://evil")
    assert refused.is_error
    assert "evil" not in (await mcp.call_tool("order", {"isbn": "7"})).content[0].text


@pytest.mark.parametrize(("name", "says"), [("color", "does not exist"), ("isbn", "must have a default")])
def test_what_can_not_be_excluded_is_refused(name: str, says: str) -> None:
    """fastmcp 2: a ValueError with these words."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")

    def order(isbn: str) -> str:
        return isbn

    with pytest.raises(ValueError, match=says):
        mcp.tool(order, exclude_args=[name])


async def test_a_context_announces_changes_under_the_names_of_each_library() -> None:
    """SDK 2.x: notify_…; fastmcp: send_notification(…), and in version 2 send_…_changed."""
    from millstream.compat import types  # noqa: PLC0415  as programs do

    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")

    @mcp.resource("book://7")
    def book() -> str:
        return "Momo"

    @mcp.tool
    async def change(way: int, ctx: Context) -> str:
        ways = [
            lambda: ctx.notify_resource_updated("book://7"),
            ctx.notify_tools_changed,
            ctx.send_prompt_list_changed,
            lambda: ctx.send_notification(types.ResourceListChangedNotification()),
        ]
        await ways[way]()
        return "done"

    expected = [("resource", "book://7"), ("tools", ""), ("prompts", ""), ("resources", "")]
    async with (
        Client(mcp.engine) as client,
        client.watch("book://7", tools=True, prompts=True, resources=True) as changes,
    ):
        seen = []
        for way in range(len(expected)):
            await client.call("change", way=way)
            heard = await anext(aiter(changes))
            seen.append((heard.kind, heard.uri))
    assert seen == expected
    async with standalone.Context(mcp) as context:
        with pytest.raises(ValueError, match=r"ctx\.log"):
            await context.send_notification(types.ToolListChangedNotification(method="notifications/message"))
