"""A server with every kind of content, for tests that put it behind a gateway."""

from millstream import Context, Message, ProtocolError, Server, ToolResult
from millstream._protocol.content import Audio, EmbeddedResource, Image, ResourceLink, Text

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
SOUND = bytes(reversed(range(256)))
LINKED = "file:///secret/notes.md"


def make_library(name: str = "library") -> Server:  # noqa: C901  it has one of everything
    """Return a new server, because a server object can run only once at a time."""
    mcp = Server(name, instructions="Lend books.")

    @mcp.tool
    async def everything() -> ToolResult:
        """Return a block of each kind."""
        return ToolResult(
            [
                Text("text"),
                Image(PICTURE, "image/png"),
                Audio(SOUND, "audio/wav"),
                ResourceLink(LINKED, "notes"),
                EmbeddedResource("book://1", text="Call me"),
            ],
            structured={"n": 1},
            meta={"example.com/kept": {"n": 1.5}},
        )

    @mcp.tool
    async def length(words: list[str]) -> int:
        """Return a number, which older revisions receive as an object."""
        return len(words)

    @mcp.tool
    async def refuse() -> str:
        """Fail with a code."""
        raise ProtocolError(-32099, "Closed", {"until": "Monday"})

    @mcp.tool
    async def trace(ctx: Context) -> str:
        """Return the caller's trace id from `_meta`."""
        return str(ctx.meta.get("example.com/trace"))

    @mcp.tool
    async def steps(ctx: Context) -> str:
        """Report progress."""
        await ctx.progress(1, 2, "half")
        return "done"

    @mcp.resource("book://{isbn}", mime_type="text/plain")
    async def book(isbn: str) -> str | None:
        """One book."""
        return None if isbn == "missing" else f"Book {isbn}"

    @mcp.resource(LINKED)
    async def notes() -> bytes:
        """The target of a resource link."""
        return PICTURE

    @mcp.resource("urn:library:hours")
    async def hours() -> str:
        """A URI without an authority."""
        return "9 to 5"

    @mcp.prompt
    def pitch(title: str, tone: str = "warm") -> list[Message]:
        """Praise a book."""
        return [Message("user", Text(f"Praise {title}, {tone}.")), Message("user", ResourceLink(LINKED, "notes"))]

    @mcp.complete("pitch", "tone")
    def tones(value: str, arguments: dict[str, str]) -> list[str]:
        return [each for each in ("warm", "wild", arguments.get("title", "cold")) if each.startswith(value)]

    @mcp.complete("book://{isbn}", "isbn")
    def isbns(value: str, arguments: dict[str, str]) -> list[str]:
        return [f"{value}{digit}" for digit in range(3)]

    return mcp
