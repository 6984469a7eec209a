"""A program that uses every feature that a client can notice, for the installed library.

``python whole.py`` serves it on stdio, and ``python whole.py PORT`` over Streamable HTTP.
"""

import asyncio
import json
import sys
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import BaseModel

try:
    from fastmcp import Context, FastMCP
    from fastmcp.server.middleware import Middleware
    from mcp.shared.exceptions import MCPError

    mcp: Any = FastMCP("whole", version="7", instructions="Sell books.", website_url="https://example.com/")
except ImportError:
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver import Context
        from mcp.shared.exceptions import MCPError

        mcp = MCPServer("whole", title="The whole", version="7", instructions="Sell books.")
    except ImportError:
        from mcp.server.fastmcp import Context, FastMCP
        from mcp.shared.exceptions import McpError
        from mcp.types import ErrorData

        def MCPError(code: int, message: str, data: Any = None) -> Exception:  # noqa: N802  as in newer versions
            return McpError(ErrorData(code=code, message=message, data=data))

        mcp = FastMCP("whole", instructions="Sell books.", website_url="https://example.com/")

carts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
greeted = asyncio.Event()
"""Set when a client has sent a notification that MCP doesn't have."""


async def notice(context: Any, call_next: Any) -> Any:
    """Let every message pass, and notice that notification."""
    if context.method == "notifications/com.example/hello":
        greeted.set()
    return await call_next(context)


if hasattr(mcp, "add_middleware"):
    middleware: Any = Middleware()
    middleware.on_message = notice
    mcp.add_middleware(middleware)
elif hasattr(mcp, "middleware"):
    mcp.middleware.append(notice)
if hasattr(mcp, "middleware"):

    @mcp.tool()
    async def greet() -> str:
        """Wait for that notification."""
        await asyncio.wait_for(greeted.wait(), 10)
        greeted.clear()
        return "hello"


class Book(BaseModel):
    """A book."""

    title: str
    pages: int | None = None


class Name(BaseModel):
    """A name."""

    name: str


@mcp.tool()
def find(title: str, pages: int = 1) -> Book:
    """Find a book."""
    return Book(title=title, pages=pages)


@mcp.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("no books")


@mcp.tool()
def refuse() -> str:
    """Fail with an error of the protocol."""
    raise MCPError(code=-32042, message="Open this first.", data={"elicitations": [], "why": "unpaid"})


@mcp.tool()
async def work(ctx: Context) -> str:
    """Report progress and log."""
    await ctx.report_progress(1, 2, "half")
    await ctx.info("at work")
    await ctx.report_progress(2, 2)
    return "worked"


@mcp.tool()
async def grow(ctx: Context) -> str:
    """Add a tool, and announce it."""

    def grown() -> str:
        """A tool that wasn't there."""
        return "grown"

    mcp.tool()(grown)
    await ctx.session.send_tool_list_changed()
    return "ok"


@mcp.tool()
async def shrink() -> str:
    """Remove that tool again."""
    getattr(mcp, "local_provider", mcp).remove_tool("grown")
    return "ok"


@mcp.tool()
async def touch(ctx: Context) -> str:
    """Announce a change of a resource."""
    await ctx.session.send_resource_updated("book://Emma")
    return "ok"


@mcp.tool()
async def publish(ctx: Context) -> str:
    """Announce changes to subscriptions of the per-request era."""
    await ctx.notify_tools_changed()
    await ctx.notify_resource_updated("book://Emma")
    return "ok"


@mcp.tool()
def put(value: int, ctx: Context) -> str:
    """Keep something in the session."""
    carts[getattr(ctx.session, "_connection", ctx.session)] = value
    return "ok"


@mcp.tool()
def take(ctx: Context) -> str:
    """Return what the session keeps."""
    return str(carts.get(getattr(ctx.session, "_connection", ctx.session)))


@mcp.tool()
def who(ctx: Context) -> str:
    """Describe the client."""
    params = ctx.session.client_params
    return params.model_dump_json(by_alias=True, exclude_none=True) if params is not None else "unknown"


@mcp.tool()
def meta(ctx: Context) -> str:
    """Return the metadata of this request."""
    found = ctx.request_context.meta
    found = found if found is None or isinstance(found, dict) else found.model_dump(by_alias=True, exclude_none=True)
    return json.dumps({name: value for name, value in (found or {}).items() if "example" in name})


@mcp.tool()
def instruct(text: str) -> str:
    """Change the instructions for new clients."""
    getattr(mcp, "_lowlevel_server", getattr(mcp, "_mcp_server", None)).instructions = text
    return "ok"


@mcp.tool()
async def place(ctx: Context) -> str:
    """Return where this runs, as far as the library tells."""
    return str(getattr(ctx, "transport", "unknown"))


if hasattr(Context, "enable_components"):

    @mcp.tool(tags={"staff"})
    def restock() -> str:
        """Order books."""
        return "ordered"

    mcp.disable(tags={"staff"})

    @mcp.tool()
    async def promote(ctx: Context) -> str:
        """Show the caller the tools for staff."""
        await ctx.enable_components(tags={"staff"})
        return "ok"

    @mcp.tool()
    async def demote(ctx: Context) -> str:
        """Hide them again."""
        await ctx.disable_components(tags={"staff"})
        return "ok"


@mcp.tool()
async def ask(ctx: Context) -> str:
    """Ask the user."""
    answer = await ctx.elicit("Choose a name.", Name)
    return answer.data.name if answer.action == "accept" else answer.action


@mcp.resource("book://list", mime_type="application/json")
def books() -> str:
    """All books."""
    return '["Emma"]'


@mcp.resource("book://{title}")
def book(title: str) -> str:
    """One book."""
    if title == "none":
        raise ValueError("no such book")
    return title


@mcp.prompt(title="Review")
def review(title: str, tone: str = "kind") -> str:
    """Review a book."""
    return f"Review {title}, {tone}."


if hasattr(mcp, "completion"):

    @mcp.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Any:
        from mcp import types  # noqa: PLC0415  both libraries have it somewhere else

        values = [each for each in ("Emma", "Emily") if each.startswith(argument.value)]
        return types.Completion(values=values, total=2)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        mcp.run(**({"show_banner": False} if hasattr(mcp, "local_provider") else {}))
    elif hasattr(mcp, "settings") and hasattr(mcp.settings, "port"):
        mcp.settings.port = int(sys.argv[1])
        mcp.run("streamable-http")
    else:
        more = {"show_banner": False} if hasattr(mcp, "local_provider") else {}
        mcp.run("streamable-http", port=int(sys.argv[1]), **more)
