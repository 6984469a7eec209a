"""A server with every feature that a gateway forwards, in a file so that stdio can serve it."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from millstream import (
    Audio,
    Context,
    Elicit,
    EmbeddedResource,
    Image,
    Message,
    ProtocolError,
    ResourceLink,
    Roots,
    Sample,
    Server,
    Text,
    ToolError,
    ToolResult,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
WAV = b"RIFF" + bytes(8)
BINARY = bytes(range(256))
CODE = -31_234
TOOL = {"name": "look", "description": "Looks.", "inputSchema": {"type": "object", "properties": {}}}


@dataclass
class Point:
    """A point."""

    x: int
    y: int = 2


@dataclass
class Choice:
    """A color and sizes."""

    color: str
    sizes: list[str]


FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "oneOf": [{"const": "r", "title": "Red"}, {"const": "g", "title": "Green"}]},
        "sizes": {"type": "array", "items": {"type": "string", "enum": ["s", "m"]}},
    },
    "required": ["color", "sizes"],
}


def build() -> Server:
    """Return a new server."""
    mcp = Server("world", version="3", instructions="Ask for anything.")
    journal: dict[str, list[str]] = defaultdict(list)
    news = asyncio.Condition()

    async def note(key: str, text: str) -> None:
        async with news:
            journal[key].append(text)
            news.notify_all()

    _add_contents(mcp)
    _add_messages(mcp)
    _add_questions(mcp)
    _add_prompts_and_resources(mcp)

    @mcp.tool
    async def waits(key: str) -> str:
        """Waits until the call is canceled."""
        await note(key, "began")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(note(key, "ended"))
        return "never"

    @mcp.tool
    async def awaited(key: str, text: str) -> str:
        """Waits until a note was written."""
        async with news:
            await news.wait_for(lambda: text in journal[key])
        return text

    @mcp.tool
    async def grow(name: str) -> str:
        """Adds a tool."""
        mcp.tool(name=name)(lambda: "new")
        return "grown"

    @mcp.tool
    async def shrink(name: str) -> str:
        """Removes a tool."""
        mcp.remove_tool(name)
        return "shrunk"

    @mcp.tool
    async def touch(uri: str) -> str:
        """Announces that a resource has changed."""
        await mcp.resource_updated(uri)
        return "touched"

    return mcp


def _add_contents(mcp: Server) -> None:
    @mcp.tool
    def add(a: int, b: int) -> int:
        """Adds numbers."""
        return a + b

    @mcp.tool
    def contents() -> list[Any]:
        """Content of every kind."""
        return [
            Text("Grüße, 世界 \u2028"),
            Image(PNG, "image/png"),
            Audio(WAV, "audio/wav"),
            ResourceLink(uri="note://text", name="text", title="A note"),
            EmbeddedResource("note://text", text="inside", mime_type="text/plain"),
            EmbeddedResource("note://bytes", blob=BINARY, mime_type="application/octet-stream"),
        ]

    @mcp.tool
    def point(x: int) -> Point:
        """A structured value."""
        return Point(x)

    @mcp.tool
    def numbers() -> list[int]:
        """A structured value that isn't an object."""
        return [1, 2, 3]


def _add_messages(mcp: Server) -> None:
    @mcp.tool
    def fails() -> str:
        """Raises a tool error."""
        raise ToolError("Sold out.")

    @mcp.tool
    def refuses() -> str:
        """Raises a protocol error with a code."""
        raise ProtocolError(CODE, "Not today", {"until": "Monday"})

    @mcp.tool
    async def about(ctx: Context) -> ToolResult:
        """Returns a member of the request's `_meta` in the result's."""
        return ToolResult(content="told", meta={"example.com/back": ctx.meta.get("example.com/there")})

    @mcp.tool
    async def steps(ctx: Context) -> str:
        """Reports each step."""
        for step in range(1, 4):
            await ctx.progress(step, 3, f"step {step}")
        return "done"

    @mcp.tool
    async def says(ctx: Context) -> str:
        """Logs on several levels."""
        await ctx.debug("quiet")
        await ctx.info({"n": 1})
        await ctx.error("loud")
        return "said"


def _add_questions(mcp: Server) -> None:
    @mcp.tool
    async def asks(ctx: Context) -> str:
        """Asks twice."""
        first = await ctx.elicit("first", Point)
        second = await ctx.elicit("second", Point)
        return f"{first.x} {second.x}"

    @mcp.tool
    async def asks_choices(ctx: Context) -> str:
        """Asks with choices."""
        found = await ctx.elicit("choices", FORM)
        return f"{found['color']} {found['sizes']}"

    @mcp.tool
    async def asks_all(ctx: Context) -> str:
        """Asks everything at once."""
        found = await ctx.ask(where=Elicit("third", Point), words=Sample("Say hello"), folders=Roots())
        return f"{found['where'].x} {found['words'].text} {found['folders'][0].uri}"

    @mcp.tool
    async def asks_url(ctx: Context) -> str:
        """Asks the user to open a URL."""
        await ctx.elicit_url("Pay", "https://example.com/pay")
        return "paid"

    @mcp.tool
    async def samples(ctx: Context) -> str:
        """Asks a model."""
        return (await ctx.sample([Message("user", "Say hello"), Message("assistant", "No")], max_tokens=7)).text

    @mcp.tool
    async def samples_with_tools(ctx: Context) -> str:
        """Asks a model that may use tools."""
        return (await ctx.sample("Look", tools=[TOOL])).text

    @mcp.tool
    async def lists_roots(ctx: Context) -> list[str]:
        """Asks for folders."""
        return [root.uri for root in await ctx.roots()]


def _add_prompts_and_resources(mcp: Server) -> None:
    @mcp.prompt
    def greet(name: str) -> list[Message]:
        """Greets a person."""
        return [Message("user", f"Greet {name}"), Message("user", Audio(WAV, "audio/wav"))]

    @mcp.prompt
    async def asking(ctx: Context) -> str:
        return f"About {(await ctx.elicit('prompt', Point)).x}"

    @mcp.complete("greet", argument="name")
    def names(value: str, arguments: dict[str, str]) -> list[str]:
        return [each for each in ("Ada", "Alan", "Grace") if each.startswith(value)]

    @mcp.resource("note://text", mime_type="text/plain")
    def text() -> str:
        return "a note"

    @mcp.resource("note://bytes", mime_type="application/octet-stream")
    def data() -> bytes:
        return BINARY

    @mcp.resource("book://{isbn}/{page}")
    def page(isbn: str, page: int) -> str:
        return f"{isbn} page {page}"

    @mcp.complete("book://{isbn}/{page}", argument="isbn")
    def isbns(value: str, arguments: dict[str, str]) -> list[str]:
        return [each for each in ("111", "112", "222") if each.startswith(value)]

    @mcp.live("order://{number}")
    def order(number: int) -> dict[str, int]:
        return {"number": number}

    @mcp.resource("note://asking")
    async def place(ctx: Context) -> str:
        return f"Place {(await ctx.elicit('place', Point)).x}"


mcp = build()
