"""Resolvers: values from elsewhere, questions to the person, what the person declined, roots and a model."""

import asyncio
from typing import Annotated

from mcp.server.mcpserver import (
    AcceptedElicitation,
    Context,
    Elicit,
    ElicitationResult,
    ListRoots,
    MCPServer,
    Resolve,
    Sample,
)
from mcp.types import ListRootsResult, SamplingMessage, TextContent
from pydantic import BaseModel

mcp = MCPServer("resolving")


class Size(BaseModel):
    size: str


class Color(BaseModel):
    color: str


def price_of(isbn: str) -> int:
    return len(isbn)


async def ask_for_size(isbn: str, price: Annotated[int, Resolve(price_of)]) -> Size | Elicit[Size]:
    if isbn == "small":
        return Size(size="S")
    return Elicit(f"Which size of {isbn} for {price}?", Size)


async def ask_for_color(ctx: Context) -> Elicit[Color]:
    return Elicit("Which color?", Color)


async def open_folders() -> ListRoots:
    return ListRoots()


async def ask_model(words: str) -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(type="text", text=words))], max_tokens=9)


@mcp.tool()
async def order(isbn: str, size: Annotated[Size, Resolve(ask_for_size)]) -> str:
    return f"{isbn} in {size.size}"


@mcp.tool()
async def paint(
    isbn: str,
    color: Annotated[ElicitationResult[Color], Resolve(ask_for_color)],
    size: Annotated[ElicitationResult[Size], Resolve(ask_for_size)],
) -> str:
    shown = color.data.color if isinstance(color, AcceptedElicitation) else color.action
    return f"{shown}, {size.data.size if isinstance(size, AcceptedElicitation) else size.action}"


@mcp.tool()
def folders(roots: Annotated[ListRootsResult, Resolve(open_folders)]) -> list[str]:
    return [str(each.uri) for each in roots.roots]


@mcp.tool()
async def say(words: str, said: Annotated[object, Resolve(ask_model)]) -> str:
    await asyncio.sleep(0)
    return f"{said.role}: {said.content.text}"


if __name__ == "__main__":
    mcp.run()
