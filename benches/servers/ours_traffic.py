"""Our server for the rows of `benches.traffic`: a tool for each kind of argument, result, and function."""

import asyncio

from pydantic import BaseModel, Field

from benches import wire
from benches.servers.ours import mcp

PAGE = wire.page()


class Address(BaseModel):
    """A delivery address."""

    street: str
    city: str


class Order(BaseModel):
    """An order of a book."""

    isbn: str
    copies: int = Field(ge=1)
    where: Address


@mcp.tool
async def page() -> str:
    """Return 16 KB of text."""
    return PAGE


@mcp.tool
async def count(text: str) -> int:
    """Count the characters of a text."""
    return len(text)


@mcp.tool
async def order(order: Order) -> str:
    """Order copies of a book."""
    return f"{order.copies} copies of {order.isbn} go to {order.where.city}."


@mcp.tool
def add_plain(a: int, b: int) -> int:
    """Add two numbers in a thread."""
    return a + b


@mcp.tool
async def add_later(a: int, b: int) -> int:
    """Add two numbers after 10 ms."""
    await asyncio.sleep(0.01)
    return a + b


@mcp.tool
async def fail() -> str:
    """Raise an error."""
    raise LookupError("There is no such book.")
