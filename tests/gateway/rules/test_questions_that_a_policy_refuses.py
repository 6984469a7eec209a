"""What callers read if the operator doesn't allow an upstream's questions."""

from typing import Any

import pytest

from cases import for_each
from millstream import Client, Context, Server
from millstream.client import ServerError, ToolFailed
from millstream.gateway import UpstreamPolicy
from patience import WAIT
from processes import ROOT

REVISIONS = "2025-06-18", "2025-11-25", "2026-07-28"
KINDS = {"ask": "elicitation", "sample": "sampling", "list_roots": "roots"}
"""Tool -> kind of question that it asks."""
PROGRAM = """
import sys
from mcp.server.fastmcp import Context, FastMCP
from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel

class Address(BaseModel):
    city: str

s = FastMCP("shop")

@s.tool()
async def ask(ctx: Context) -> str:
    return str(await ctx.elicit("Where to?", Address))

@s.tool()
async def sample(ctx: Context) -> str:
    message = SamplingMessage(role="user", content=TextContent(type="text", text="Hello"))
    return str(await ctx.session.create_message([message], max_tokens=10))

@s.tool()
async def list_roots(ctx: Context) -> str:
    return str(await ctx.session.list_roots())

s.run("stdio")
"""


def make_shop() -> Server:
    mcp = Server("shop")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        return str(await ctx.elicit("Where to?", str))

    @mcp.tool
    async def sample(ctx: Context) -> str:
        return (await ctx.sample("Hello")).text

    @mcp.tool
    async def list_roots(ctx: Context) -> str:
        return str(await ctx.roots())

    return mcp


async def answer(*question: Any) -> Any:
    """Fail the test, because the question must not arrive."""
    raise AssertionError(question)


async def find_errors(target: Any, revision: str, prefix: str, questions: tuple[Any, ...]) -> dict[str, str]:
    """Return the error of each tool, for a client that can be asked anything."""
    front, found = Server("front"), dict[str, str]()
    policy = UpstreamPolicy(questions=questions)
    front.upstream("shop", target, prefix=prefix, policy=policy, start_timeout=WAIT, timeout=WAIT)
    roots = ["file:///home"]
    async with Client(front, revision=revision, elicit=answer, sample=answer, roots=roots, timeout=WAIT) as client:
        for tool, kind in KINDS.items():
            if kind not in questions:
                with pytest.raises((ServerError, ToolFailed)) as caught:
                    await client.call(f"{prefix}_{tool}" if prefix else tool)
                found[tool] = str(caught.value)
    return found


@for_each("prefix", ["shop", ""])
async def test_errors_of_servers_that_check_capabilities_name_the_policy(prefix: str) -> None:
    for questions in (), ("roots",):
        for tool, error in (await find_errors(make_shop(), "2026-07-28", prefix, questions)).items():
            refusal = f"The gateway's policy doesn't allow its questions ({KINDS[tool]})."
            assert error == f"The server 'shop' couldn't ask a question. {refusal}"


@pytest.mark.server
@for_each("revision", REVISIONS)
async def test_servers_that_ask_anyway_read_about_the_policy(revision: str) -> None:
    python = str(ROOT / ".venv-mcp1" / "bin" / "python")
    errors = await find_errors([python, "-c", PROGRAM], revision, "shop", ())
    assert errors.keys() == KINDS.keys()
    for tool, error in errors.items():
        assert f"The gateway's policy doesn't allow its questions ({KINDS[tool]})." in error
        assert "declare" not in error
