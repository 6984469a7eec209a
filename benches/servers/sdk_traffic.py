"""The tools of `ours_traffic.py` on the official Python SDK: `sdk_traffic.py (http|stateless) PORT`, set up as in
`sdk_python.py`.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel, Field

mcp = MCPServer("bench", log_level="CRITICAL")
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


@mcp.tool()
async def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool()
def add_plain(a: int, b: int) -> int:
    """Add two numbers in a thread."""
    return a + b


@mcp.tool(structured_output=False)
async def page() -> str:
    """Return 16 KB of text."""
    return PAGE


@mcp.tool()
async def count(text: str) -> int:
    """Count the characters of a text."""
    return len(text)


@mcp.tool(structured_output=False)
async def order(order: Order) -> str:
    """Order copies of a book."""
    return f"{order.copies} copies of {order.isbn} go to {order.where.city}."


@mcp.tool()
async def fail() -> str:
    """Raise an error."""
    raise LookupError("There is no such book.")


app = mcp.streamable_http_app(json_response=True, stateless_http=sys.argv[1] == "stateless")
uvicorn.run(
    app, port=int(sys.argv[2]), loop="uvloop", http="httptools", log_level="warning", access_log=False, ws="none"
)
