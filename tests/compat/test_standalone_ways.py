"""Where fastmcp does something otherwise than the SDK, and a server of the door does what fastmcp does."""

from typing import Any

import httpx2
import pytest

from millstream import Client
from millstream.client import Failure
from millstream.compat import types
from millstream.compat.fastmcp import FastMCP, standalone
from patience import WAIT

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"


async def test_logs_are_objects_and_prompts_say_what_they_are() -> None:
    """Handlers written for fastmcp's servers read `data["msg"]`; the SDK's get the message itself."""
    for kind, message in ((standalone.FastMCP, {"msg": "hello", "extra": None}), (FastMCP, "hello")):
        mcp: Any = kind("shop")

        @mcp.tool()
        async def told(ctx: standalone.Context) -> str:
            await ctx.info("hello")
            return "told"

        @mcp.prompt(meta={"team": "books"})
        def review() -> str:
            return "Review it"

        said: list[Any] = []
        client = Client(
            mcp.engine, revision=HANDSHAKE, timeout=WAIT, on_log=lambda each, said=said: said.append(each.data)
        )
        async with client:
            await client.call("told")
            result = await client.request("prompts/get", {"name": "review"})
        assert said == [message]
        assert ("_meta" in result) is (kind is standalone.FastMCP)


@pytest.mark.parametrize(("revision", "several"), [(HANDSHAKE, 1), (NEWEST, 2)])
async def test_a_call_without_a_session_has_an_id_of_its_own(revision: str, several: int) -> None:
    """Programs keep things by `ctx.session_id`: under None, all callers of the newest revision shared them."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")

    @mcp.tool
    async def told(ctx: standalone.Context) -> str:
        first, second = ctx.session_id, ctx.session_id
        assert first == second
        return str(first)

    async with Client(mcp.engine, revision=revision, timeout=WAIT) as client:
        ids = {(await client.call("told")).text for _ in range(2)}
    assert len(ids) == several
    assert "None" not in ids


async def test_a_list_of_anything_promises_nothing_and_sends_an_image_once() -> None:
    """fastmcp 4.1: its schema would say nothing, and the image would be in the structured content, too."""
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop")

    @mcp.tool
    def cover() -> list:  # type: ignore[type-arg]  # as programs write it
        return [types.ImageContent(data="AAAA", mime_type="image/png"), {"page": 1}]

    @mcp.tool
    def pages() -> list[int]:
        return [1]

    async with Client(mcp.engine, revision=HANDSHAKE, timeout=WAIT) as client:
        schemas = {tool.name: tool.output_schema for tool in await client.tools()}
        result = await client.request("tools/call", {"name": "cover", "arguments": {}})
    assert schemas["cover"] is None
    assert schemas["pages"] is not None
    assert "structuredContent" not in result
    assert [each["type"] for each in result["content"]] == ["image", "text"]


@pytest.mark.parametrize("revision", [HANDSHAKE, NEWEST])
@pytest.mark.parametrize("handler", [False, True])
async def test_completion_is_offered_only_where_a_handler_completes(revision: str, handler: bool) -> None:
    """The door's arguments have no choices of their own: without a handler, every answer was empty."""
    mcp = FastMCP("shop")

    @mcp.prompt()
    def review(isbn: str) -> str:
        return isbn

    if handler:
        mcp.completion()(lambda ref, argument, context: None)
    asked = {"ref": {"type": "ref/prompt", "name": "review"}, "argument": {"name": "isbn", "value": "7"}}
    async with Client(mcp.engine, revision=revision, timeout=WAIT) as client:
        assert ("completions" in client.capabilities) is handler
        if handler:
            assert (await client.request("completion/complete", asked))["completion"]["values"] == []
        else:
            with pytest.raises(Failure, match="completion/complete"):
                await client.request("completion/complete", asked)


async def test_mounting_says_what_cannot_be_or_is_there_twice(caplog: pytest.LogCaptureFixture) -> None:
    """fastmcp: an error for itself, and warnings for one name twice and for errors that tell more than the whole."""
    whole: standalone.FastMCP[Any] = standalone.FastMCP("whole", mask_error_details=True)
    with pytest.raises(ValueError, match="onto itself"):
        whole.mount(whole)

    def buy() -> str:
        return "bought"

    for name in ("one", "two"):
        part: standalone.FastMCP[Any] = standalone.FastMCP(name, mask_error_details=name == "one")
        part.tool(buy)
        whole.mount(part, "shop")
    assert [record.getMessage() for record in caplog.records] == [
        "whole: mask_error_details isn't set for two, which is mounted on it",
        "Duplicate of the tools: shop_buy of two is here already",
    ]


def spec(schemas: dict[str, Any]) -> dict[str, Any]:
    answer = {
        "200": {"description": "", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/A"}}}}
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shop", "version": "1"},
        "paths": {"/a": {"get": {"operationId": "get_a", "responses": answer}}},
        "components": {"schemas": schemas},
    }


ISBN = {"type": "object", "properties": {"isbn": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schemas", "references"),
    [
        ({"A": {"type": "object", "properties": {"b": {"$ref": "#/components/schemas/B"}}}, "B": ISBN}, False),
        ({"A": {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/A"}}}}, True),
        (
            {
                **{
                    name: {"type": "object", "properties": {x: {"$ref": f"#/components/schemas/{after}"} for x in "xy"}}
                    for name, after in zip("ABCDEFGHIJKLMN", "BCDEFGHIJKLMNO", strict=True)
                },
                "O": ISBN,
            },
            True,
        ),
    ],
    ids=["plain", "contains itself", "too large"],
)
async def test_definitions_of_an_api_stand_where_they_are_used_unless_that_never_ends(
    schemas: dict[str, Any], references: bool
) -> None:
    """fastmcp writes them out, because many models follow no references; a bound keeps that from exploding."""
    mcp = standalone.FastMCP.from_openapi(spec(schemas), httpx2.AsyncClient(base_url="http://shop", timeout=WAIT))
    async with Client(mcp.engine, timeout=WAIT) as client:
        [tool] = await client.tools()
    assert ("$defs" in dict(tool.output_schema or {})) is references


@pytest.mark.parametrize("text", ['{"isbn": "7"}', "no JSON"])
async def test_without_validation_a_tool_of_an_api_promises_any_object(text: str) -> None:
    """fastmcp: ``validate_output=False`` is for APIs that don't keep their promises."""
    http = httpx2.AsyncClient(
        base_url="http://shop", transport=httpx2.MockTransport(lambda request: httpx2.Response(200, text=text))
    )
    mcp = standalone.FastMCP.from_openapi(spec({"A": ISBN}), http, validate_output=False)
    async with Client(mcp.engine, revision=HANDSHAKE, timeout=WAIT) as client:
        [tool] = await client.tools()
        result = await client.request("tools/call", {"name": "get_a", "arguments": {}})
    assert tool.output_schema == {"type": "object", "additionalProperties": True}
    assert result["structuredContent"] == ({"isbn": "7"} if text.startswith("{") else {"result": text})


@pytest.mark.parametrize("kind", ["TOOL", "RESOURCE"])
async def test_an_api_that_wants_fewer_requests_is_said_to_without_its_words(kind: str) -> None:
    """fastmcp: one sentence for 429, whether errors are masked or not."""
    http = httpx2.AsyncClient(
        base_url="http://shop", transport=httpx2.MockTransport(lambda request: httpx2.Response(429, text="secret"))
    )
    maps = [standalone.RouteMap(mcp_type=standalone.MCPType(kind))]
    mcp = standalone.FastMCP.from_openapi(spec({"A": ISBN}), http, route_maps=maps, mask_error_details=True)
    words = "Rate limited by upstream API, please retry later"
    async with Client(mcp.engine, revision=HANDSHAKE, timeout=WAIT) as client:
        if kind == "TOOL":
            assert (await client.call("get_a")).text == words
        else:
            with pytest.raises(Failure, match=words):
                await client.read("resource://get_a")


async def test_messages_of_a_prompt_are_of_the_class_that_the_library_has() -> None:
    """fastmcp has one class, whose values programs compare; the SDK has one for each role."""
    told = {"role": "assistant", "content": "Sure"}
    for kind, classes in (
        (standalone.FastMCP, ["Message", "Message"]),
        (FastMCP, ["UserMessage", "AssistantMessage"]),
    ):
        mcp: Any = kind("shop")

        def review() -> list[Any]:
            return ["Review it", told]

        mcp.add_prompt(review)
        prompt = mcp.offered.prompts["review"]
        assert [type(each).__name__ for each in (await prompt.result()).messages] == classes
