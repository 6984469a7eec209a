"""The tools of `ours_traffic.py` on another library: `sdk_traffic.py (mcp|fastmcp) (http|stateless) PORT`.

They're set up as in `sdk_python.py` and `sdk_fastmcp.py`, except that they log no exceptions.
"""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from pydantic import BaseModel, Field

PAGE = Path(os.environ["BENCH_PAGE"]).read_text("utf-8")


class Address(BaseModel):
    """A delivery address."""

    street: str
    city: str


class Order(BaseModel):
    """An order of a book."""

    isbn: str
    copies: Annotated[int, Field(ge=1)]
    where: Address


async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def add_plain(a: int, b: int) -> int:
    """Add two numbers in a thread."""
    return a + b


async def add_later(a: int, b: int) -> int:
    """Add two numbers after 10 ms."""
    await asyncio.sleep(0.01)
    return a + b


async def page() -> str:
    """Return 16 KB of text."""
    return PAGE


async def count(text: str) -> int:
    """Count the characters of a text."""
    return len(text)


async def order(order: Order) -> str:
    """Order copies of a book."""
    return f"{order.copies} copies of {order.isbn} go to {order.where.city}."


async def fail() -> str:
    """Raise an error."""
    raise LookupError("There is no such book.")


library, mode, port = sys.argv[1:]
structured = [add, add_plain, add_later, count, fail]
if library == "mcp":
    from mcp.server.mcpserver import MCPServer

    mcp = MCPServer("bench", log_level="CRITICAL")
    for function in structured:
        mcp.add_tool(function)
    for function in (page, order):
        mcp.add_tool(function, structured_output=False)
    app = mcp.streamable_http_app(json_response=True, stateless_http=mode == "stateless")
else:
    from fastmcp import FastMCP
    from fastmcp.tools import Tool

    logging.getLogger("fastmcp").setLevel(logging.CRITICAL)
    mcp = FastMCP("bench")
    for function in structured:
        mcp.add_tool(Tool.from_function(function))
    for function in (page, order):
        mcp.add_tool(Tool.from_function(function, output_schema=None))
    app = mcp.http_app(json_response=True, stateless_http=mode == "stateless")
uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="warning", access_log=False, ws="none")
