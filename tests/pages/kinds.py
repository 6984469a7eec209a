"""A server with many kinds of tools, in the order in which a newcomer meets them."""

import struct
import zlib
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from typing import Annotated, Literal

from millstream import Context, Field, Image, Server, ToolError

mcp = Server("kinds", serve="all")


class Color(Enum):
    RED = "red"
    GREEN = "green"


@dataclass
class Circle:
    kind: Literal["circle"]
    radius: Annotated[float, Field(gt=0)]


@dataclass
class Square:
    kind: Literal["square"]
    side: float


@dataclass
class Address:
    street: str
    zip: str = "12345"


@mcp.tool
def draw(shape: Circle | Square, color: Color, tags: list[Literal["bold", "thin"]] | None = None) -> str:
    """A circle or a square."""
    return f"{shape} {color} {tags}"


@mcp.tool
def plan(day: date, every: timedelta = timedelta(hours=1), at: Address | None = None) -> str:
    """Something that happens again and again."""
    return f"{day} {every} {at}"


@mcp.tool
def add(numbers: list[int]) -> int:
    """All together."""
    return sum(numbers)


@mcp.tool
def dot() -> Image:
    """A red dot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, body = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), zlib.compress(b"\0\xff\0\0")
    parts = chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b"")
    return Image(data=b"\x89PNG\r\n\x1a\n" + b"".join(parts), mime_type="image/png")


@mcp.tool
async def move(ctx: Context) -> str:
    """Ask where to, by a form."""
    return f"To {await ctx.elicit('Where do you live?', Address)}"


@mcp.tool
async def think(ctx: Context) -> str:
    """Ask the model of the client."""
    return f"It says {await ctx.sample('Say hi', max_tokens=20)}"


@mcp.tool
async def mill(ctx: Context) -> str:
    """Wait for an answer in the middle of the work, so that the progress can be seen."""
    await ctx.progress(3, 12, "three sacks")
    await ctx.elicit("Go on?", Address)
    return "flour"


@mcp.tool
def bake() -> str:
    """Fails."""
    raise ToolError("The oven is cold. Heat it up first.")
