"""A server with the official Python SDK 2.x, which asks questions in the handshake era, and keeps state in its process:
official_two.py (stdio|http|sse) [PORT].
"""

import os
import sys

import keep_alive
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel

keep_alive.install()

mcp = MCPServer("foreign", log_level="ERROR")
visits: list[int] = []


class Person(BaseModel):
    name: str


@mcp.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
async def count(steps: int, ctx: Context) -> str:  # type: ignore[type-arg]
    """Report each step."""
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "counted"


@mcp.tool()
async def ask(ctx: Context) -> str:  # type: ignore[type-arg]
    """Ask the user, the model, and for the roots."""
    person = await ctx.elicit("Who?", Person)
    message = SamplingMessage(role="user", content=TextContent(type="text", text="Say something."))
    said = await ctx.session.create_message([message], max_tokens=7)
    roots = await ctx.session.list_roots()
    name = person.data.name if person.action == "accept" else person.action
    return f"{name}, {said.content.text}, {roots.roots[0].uri}"


@mcp.tool()
async def visit() -> dict[str, int]:
    """Return the number of calls so far, and the id of the process."""
    visits.append(1)
    return {"count": len(visits), "process": os.getpid()}


@mcp.resource("note://one")
def note() -> str:
    """A note."""
    return "noted"


@mcp.prompt()
def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


if sys.argv[1] == "stdio":
    mcp.run("stdio")
elif sys.argv[1] == "sse":
    mcp.run("sse", port=int(sys.argv[2]))
else:
    mcp.run("streamable-http", port=int(sys.argv[2]))
