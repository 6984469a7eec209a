"""What public programs use of the SDK and of fastmcp, beside what `test_door` has. Each of these was missing once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import Field, validate_call

from millstream.compat import types
from millstream.compat.fastmcp import (
    CallNext,
    Context,
    FastMCP,
    Middleware,
    MiddlewareContext,
    ToolResult,
    base,
    standalone,
)
from millstream.testing import connect

HANDSHAKE = "2025-11-25"
REVISIONS = ["2024-11-05", HANDSHAKE, "2026-07-28"]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_function_that_pydantic_checks_may_take_the_context(revision: str) -> None:
    """The SDK's context is a model, so public programs put `validate_call` around their tools."""
    mcp = FastMCP("shop")

    class Desk:
        @validate_call
        async def greet(self, ctx: Context[Any, Any], name: str = Field(min_length=2)) -> str:
            return f"{name} at {ctx.fastmcp.name}"

    mcp.tool()(Desk().greet)
    async with connect(mcp.__millstream_server__, revision=revision) as client:
        assert (await client.call("greet", name="Ada")).text == "Ada at shop"
        assert (await client.call("greet", name="A")).is_error


async def test_a_prompt_is_made_of_base_messages() -> None:
    """``from mcp.server.fastmcp.prompts import base`` stands in the SDK's own introduction."""
    mcp = FastMCP("shop")

    @mcp.prompt()
    def review(text: str) -> list[base.Message]:
        return [base.UserMessage(text), base.AssistantMessage("Gladly.")]

    async with connect(mcp.__millstream_server__) as client:
        messages = await client.prompt("review", text="Read this.")
    assert [(each["role"], each["content"]["text"]) for each in messages] == [
        ("user", "Read this."),
        ("assistant", "Gladly."),
    ]


async def test_lifespans_are_put_together() -> None:
    """``lifespan=database | cache``: entered in this order, left in the other, the right dict counts."""
    told: list[str] = []

    @standalone.lifespan
    async def database(server: Any) -> AsyncIterator[dict[str, int]]:
        told.append(f"database of {server.name}")
        yield {"database": 1, "both": 1}
        told.append("database closed")

    @standalone.lifespan
    async def nothing(_: Any) -> AsyncIterator[None]:
        yield None

    @standalone.lifespan
    async def cache(_: Any) -> AsyncIterator[dict[str, int]]:
        told.append("cache")
        yield {"both": 2}
        told.append("cache closed")

    mcp = standalone.FastMCP("shop", lifespan=database | nothing | cache)

    @mcp.tool
    def known(ctx: Context) -> dict[str, int]:
        return dict(ctx.request_context.lifespan_context)

    async with connect(mcp.__millstream_server__) as client:
        found = (await client.call("known")).structured
    assert found == {"database": 1, "both": 2}
    assert told == ["database of shop", "cache", "cache closed", "database closed"]


async def test_a_middleware_is_annotated_with_what_clients_ask_for() -> None:
    """As fastmcp documents it; Python evaluates the annotations when the class is made."""

    class Loud(Middleware):
        async def on_call_tool(
            self,
            context: MiddlewareContext[types.CallToolRequestParams],
            call_next: CallNext[types.CallToolRequestParams, ToolResult],
        ) -> ToolResult:
            message = types.CallToolRequestParams(name=context.message.name, arguments={"name": "ADA"})
            return await call_next(context.copy(message=message))

    mcp = standalone.FastMCP("shop", middleware=[Loud()])

    @mcp.tool
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    async with connect(mcp.__millstream_server__) as client:
        assert (await client.call("greet", name="Ada")).text == "Hello, ADA!"


@pytest.mark.parametrize(("sampling", "roots"), [(True, False), (False, True)])
async def test_a_session_knows_what_the_client_can_do(sampling: bool, roots: bool) -> None:
    """The SDK's capabilities, as its documentation has them."""
    mcp = FastMCP("shop")
    asked = types.ClientCapabilities(
        sampling=types.SamplingCapability() if sampling else None, roots=types.RootsCapability() if roots else None
    )

    @mcp.tool()
    def can(ctx: Context) -> bool:
        return bool(ctx.session.check_client_capability(asked))

    async def answer(*_: Any) -> Any:
        raise AssertionError

    handlers: dict[str, Any] = {"sample": answer} if sampling else {"roots": answer}
    async with connect(mcp.__millstream_server__, revision=HANDSHAKE, **handlers) as client:
        assert (await client.call("can")).text == "true"
    async with connect(mcp.__millstream_server__, revision=HANDSHAKE) as client:
        assert (await client.call("can")).text == "false"
