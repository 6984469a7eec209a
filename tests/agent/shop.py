"""A server for agents, with tools of every kind and different hints."""

import asyncio
import warnings
from dataclasses import dataclass

from millstream import Audio, Context, EmbeddedResource, Image, ResourceLink, Server, Text, ToolAnnotations, ToolError

READ = ToolAnnotations(read_only_hint=True)
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Address:
    street: str
    copies: int = 1


def make() -> Server:  # noqa: C901  a list of tools
    """Create a new server."""
    mcp = Server("shop", instructions="Sell books.")

    @mcp.tool(annotations=READ)
    async def price(isbn: str) -> int:
        """The price of a book."""
        return len(isbn)

    @mcp.tool(annotations=ToolAnnotations(destructive_hint=True))
    async def burn(isbn: str) -> str:
        """Burn a book."""
        return f"{isbn} is gone"

    @mcp.tool
    async def unmarked() -> str:
        """Nobody knows what it does."""
        return "done"

    @mcp.tool(annotations=READ)
    async def fail() -> str:
        """Always fails."""
        raise ToolError("Sold out. Try another shop.")

    @mcp.tool(annotations=READ)
    async def count(ctx: Context) -> str:
        """Report each step."""
        await ctx.progress(1, 2, "half")
        return "counted"

    @mcp.tool(annotations=READ)
    async def show() -> list[Text | Image | Audio | ResourceLink | EmbeddedResource]:
        """Content of every kind."""
        return [
            Text("words"), Image(PNG, "image/png"), Audio(b"RIFF", "audio/wav"),
            ResourceLink(uri="book://1", name="one", description="the first"),
            EmbeddedResource("note://1", text="a note"), EmbeddedResource("zip://1", blob=b"PK", mime_type="x/zip"),
        ]  # fmt: skip

    @mcp.tool(annotations=READ)
    async def deliver(ctx: Context) -> str:
        """Ask for the address."""
        address = await ctx.elicit("Where to?", Address)
        return f"{address.street}, {address.copies}"

    @mcp.tool(annotations=READ)
    async def review(ctx: Context) -> str:
        """Ask a model."""
        return (await ctx.sample("Review it.", max_tokens=10)).text

    @mcp.tool(annotations=READ)
    async def folders(ctx: Context) -> str:
        """Ask for the roots."""
        return " ".join(root.uri for root in await ctx.roots())

    @mcp.tool(annotations=READ)
    async def forever() -> str:
        """Never ends."""
        await asyncio.Event().wait()
        return "?"

    with warnings.catch_warnings(action="ignore", category=UserWarning):

        @mcp.tool(annotations=READ, name="weird.name." + "x" * 90)
        async def weird() -> str:
            """No model may call it by its name."""
            return "weird indeed"

    @mcp.resource("book://{isbn}")
    async def book(isbn: str) -> str:
        """One book."""
        return f"Book {isbn}"

    @mcp.prompt
    def pitch(title: str, tone: str = "warm") -> str:
        """Praise a book."""
        return f"Praise {title}, {tone}."

    return mcp


mcp = make()
"""For processes that run this file."""
