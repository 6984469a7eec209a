"""What stands behind a proxy."""

from typing import Literal

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.types import Completion, ToolAnnotations
from pydantic import BaseModel

mcp = MCPServer("behind")
mcp.count = 0


class Size(BaseModel):
    size: Literal["S", "L"]


class Book(BaseModel):
    isbn: str
    pages: int


@mcp.tool(title="Find a book", annotations=ToolAnnotations(read_only_hint=True))
def find(isbn: str, pages: int = 7) -> Book:
    """Find a book."""
    return Book(isbn=isbn, pages=pages)


@mcp.tool()
async def order(ctx: Context) -> str:
    answer = await ctx.elicit("Which size?", Size)
    return answer.data.size if answer.action == "accept" else answer.action


@mcp.tool()
async def slowly(ctx: Context) -> str:
    await ctx.report_progress(1, 2, "half")
    await ctx.report_progress(2, 2, "whole")
    return "done"


@mcp.tool()
def fail() -> str:
    raise ValueError("No paper left")


@mcp.tool()
def cover() -> Image:
    return Image(data=b"\x89PNG", format="png")


@mcp.tool()
def counted() -> int:
    mcp.count += 1
    return mcp.count


@mcp.resource("books://all", mime_type="text/markdown")
def books() -> str:
    return "# Momo"


@mcp.resource("books://{isbn}/cover", mime_type="image/png")
def picture(isbn: str) -> bytes:
    return isbn.encode()


@mcp.prompt()
def review(isbn: str, tone: str = "kind") -> str:
    """Review a book."""
    return f"Write a {tone} review of {isbn}"


@mcp.completion()
async def complete(ref, argument, context):
    return Completion(values=[each for each in ("kind", "keen", "cold") if each.startswith(argument.value)])


if __name__ == "__main__":
    mcp.run()
