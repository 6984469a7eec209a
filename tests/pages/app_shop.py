"""A server with an app: a tool whose result is shown in an HTML view, and one that apps can't call."""

import asyncio
import os
from pathlib import Path
from typing import Any

from millstream import Server, ToolAnnotations
from millstream.extensions.apps import Apps

mcp = Server("apps", serve="web")
apps = mcp.extend(Apps())
DECLARED = os.environ["DECLARED"]
HTML = (Path(__file__).parent / "app.html").read_text("utf-8")
OFFICIAL = (Path(__file__).parent / "official_app.html").read_text("utf-8")
UI: dict[str, Any] = {"resourceUri": "ui://shop/table"}


@mcp.tool(meta={"ui": UI}, annotations=ToolAnnotations(read_only_hint=True))
async def stock(count: int = 3) -> dict[str, list[str]]:
    """List the books in stock."""
    return {"rows": [f"Book {number}" for number in range(count)]}


@mcp.tool(meta={"ui": UI})
async def recount(shelf: str, count: int = 3) -> dict[str, list[str]]:
    """Count the books on a shelf, which takes longer than any test."""
    await asyncio.Event().wait()
    return {"rows": []}


@mcp.resource("notes://today")
async def today() -> str:
    """Return today's note."""
    return "Order books"


@mcp.tool(meta={"ui": UI})
async def refresh(count: int) -> dict[str, list[str]]:
    """Count the books again."""
    return {"rows": [f"Counted {number}" for number in range(count)]}


@mcp.tool(meta={"ui": {"visibility": ["model"]}})
async def secret() -> str:
    """Not for apps."""
    return "secret"


@mcp.resource(
    "ui://shop/table", mime_type="text/html;profile=mcp-app", meta={"ui": {"csp": {"connectDomains": [DECLARED]}}}
)
async def table() -> str:
    """Show the stock."""
    replaced = HTML
    for name in ("SERVER", "UNDECLARED", "DECLARED"):
        replaced = replaced.replace(f'"{name}/', f'"{os.environ[name]}/')
    return replaced


@apps.tool("ui://shop/official", annotations=ToolAnnotations(read_only_hint=True))
async def official(count: int = 3) -> dict[str, list[str]]:
    """List the books in stock, for an app of the official library."""
    return await stock(count)


@mcp.resource(
    "ui://shop/official", mime_type="text/html;profile=mcp-app", meta={"ui": {"csp": {"resourceDomains": [DECLARED]}}}
)
async def official_app() -> str:
    """Show the stock, by the official library of apps."""
    return OFFICIAL.replace('"DECLARED/', f'"{DECLARED}/')
