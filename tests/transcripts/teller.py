"""The server of the golden transcripts, with few functions, so transcripts are short."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from millstream import Context, Field, ResourceLink, Server, Settings


@dataclass
class Address:
    street: str
    city: str


def build(**settings: Any) -> Server:
    """The server, with its own settings."""
    given = {"page_size": 4, "secret_key": "the one key of every golden transcript", **settings}
    server = Server("teller", version="1.0", settings=Settings(**given))

    @server.tool
    def add(a: int, b: Annotated[int, Field(ge=0)] = 0) -> int:
        """Add two numbers."""
        return a + b

    @server.tool
    async def count(ctx: Context) -> str:
        """Count to two."""
        await ctx.progress(1, 2, "one")
        await ctx.progress(2, 2, "two")
        return "two"

    @server.tool
    async def order(ctx: Context) -> str:
        """Order a book."""
        where = await ctx.elicit("Where to?", Address, key="where")
        return f"On its way to {where.city}."

    @server.tool
    def find() -> ResourceLink:
        """Find a note."""
        return ResourceLink(uri="note://a", name="a")

    @server.tool
    async def change(uri: str) -> str:
        """Say that a note has changed."""
        await server.resource_updated(uri)
        return "changed"

    @server.tool
    async def wait() -> str:
        """Wait for ever."""
        await asyncio.Event().wait()
        return "never"

    @server.tool
    def fail() -> str:
        """Fail."""
        raise RuntimeError("the log alone knows why")

    @server.resource("note://{name}", mime_type="text/plain")
    def note(name: str) -> str | None:
        """A note."""
        return None if name == "none" else f"This is {name}."

    @server.prompt
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"Greet {name}."

    return server


mcp = build()
