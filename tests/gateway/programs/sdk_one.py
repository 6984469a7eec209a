"""A program with FastMCP of the official SDK 1.x."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.fastmcp import Context, FastMCP, Image
from mcp.types import ToolAnnotations
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse


class Book(BaseModel):
    """A book."""

    title: str
    pages: int | None = None


@asynccontextmanager
async def lifespan(server: FastMCP) -> AsyncIterator[dict[str, str]]:
    yield {"shop": "open"}


mcp = FastMCP("one", instructions="Sell books.", lifespan=lifespan)


@mcp.tool(title="Add numbers", annotations=ToolAnnotations(readOnlyHint=True))
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
def find(title: str) -> Book:
    """Find a book."""
    return Book(title=title)


@mcp.tool()
def picture() -> Image:
    """Return a picture."""
    return Image(data=b"\x89PNG", format="png")


@mcp.tool()
async def order(ctx: Context) -> str:
    """Order a book."""
    await ctx.report_progress(1, 2, "half")
    return str(ctx.request_context.lifespan_context["shop"])


@mcp.tool()
def fail() -> str:
    """Raise an error."""
    raise ValueError("no books")


@mcp.resource("book://list", mime_type="application/json")
def books() -> list[str]:
    """All books."""
    return ["Emma"]


@mcp.resource("book://{title}")
def book(title: str) -> str:
    """One book."""
    return title


@mcp.prompt()
def review(title: str, tone: str = "kind") -> str:
    """Review a book."""
    return f"Review {title}, {tone}."


@mcp.custom_route("/hello/{name}", methods=["GET"])
async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello, {request.path_params['name']}!")


if __name__ == "__main__":
    mcp.run()
