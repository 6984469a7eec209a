"""Names that programs for the official SDK 1.x import: client types, forms with titles, and in-memory sessions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from millstream.compat.fastmcp import AcceptedElicitation, Context, EventStore, FastMCP, McpError
from millstream.compat.memory import create_connected_server_and_client_session
from millstream.testing import connect
from patience import WAIT

HANDSHAKE = "2025-11-25"


async def test_client_capabilities_are_typed() -> None:
    mcp = FastMCP("clients")

    @mcp.tool()
    def able(ctx: Context[Any, Any, Any]) -> list[str]:
        params = ctx.session.client_params
        assert params is not None
        able = params.capabilities
        names = {"sampling": able.sampling, "roots": able.roots, "elicitation": able.elicitation}
        return [params.clientInfo.name, *(name for name, value in names.items() if value is not None)]

    async with connect(mcp.engine, revision=HANDSHAKE, sample=lambda _: "x", roots=["file:///a"]) as client:
        name, *found = (await client.call("able")).data["result"]
    assert name
    assert found == ["sampling", "roots"]


class Palette(BaseModel):
    colors: list[str] = Field(
        json_schema_extra={
            "items": {"anyOf": [{"const": "red", "title": "Red"}, {"const": "blue", "title": "Blue"}]},
        }
    )
    size: str = Field(json_schema_extra={"oneOf": [{"const": "s", "title": "Small"}]})


async def test_choices_with_titles_reach_the_form() -> None:
    mcp = FastMCP("forms")
    forms: list[Any] = []

    @mcp.tool()
    async def ask(ctx: Context[Any, Any, Any]) -> str:
        answer = await ctx.elicit("Which?", Palette)
        return str(answer.data.colors) if isinstance(answer, AcceptedElicitation) else answer.action

    def pick(question: Any) -> Any:
        forms.append(question.requested_schema)
        return {"colors": ["blue"], "size": "s"}

    async with connect(mcp.engine, revision=HANDSHAKE, elicit=pick) as client:
        assert (await client.call("ask")).text == "['blue']"
    properties = forms[0]["properties"]
    assert properties["colors"]["items"]["anyOf"][1] == {"const": "blue", "title": "Blue"}
    assert properties["size"]["oneOf"] == [{"const": "s", "title": "Small"}]


class Events(EventStore):
    """A program's own store."""


async def test_in_memory_sessions_respond_like_the_sdk() -> None:
    mcp = FastMCP("shop", event_store=Events())

    @mcp.tool()
    def add(a: int, b: int) -> int:
        return a + b

    @mcp.resource("note://{name}")
    def note(name: str) -> str:
        return f"About {name}"

    @mcp.prompt()
    def ask(topic: str) -> str:
        return f"About {topic}?"

    async with create_connected_server_and_client_session(mcp._mcp_server) as session:
        await session.send_ping()
        assert [tool.name for tool in (await session.list_tools()).tools] == ["add"]
        result = await session.call_tool("add", {"a": 1, "b": 2})
        assert (result.content[0].text, result.structuredContent, result.isError) == ("3", {"result": 3}, False)  # type: ignore[union-attr]
        assert (await session.list_resources()).resources == []
        assert (await session.list_resource_templates()).resourceTemplates[0].uriTemplate == "note://{name}"
        assert (await session.read_resource("note://tea")).contents[0].text == "About tea"  # type: ignore[union-attr]
        assert (await session.list_prompts()).prompts[0].name == "ask"
        assert (await session.get_prompt("ask", {"topic": "tea"})).messages[0].content.text == "About tea?"  # type: ignore[union-attr]
        with pytest.raises(McpError) as failed:
            await session.read_resource("nope://x")
        assert failed.value.error.code == -32002


LOW_LEVEL = """from mcp.server.lowlevel import Server
server = Server("old")
@server.list_tools()
async def tools(): ...
"""


@pytest.mark.server
def test_error_for_a_version_1_low_level_program_suggests_the_package(tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(LOW_LEVEL, "utf-8")
    command = [sys.executable, "-m", "millstream", "run", file.name, "--port", "0"]
    started = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=False)
    assert "old.py uses the low-level Server of the official SDK, version 1." in started.stderr
    assert "pip install 'mcp<2'" in started.stderr
