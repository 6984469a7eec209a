"""The server that receives bad input, with a tool for every way in which a call can end."""

from dataclasses import dataclass
from typing import Annotated, Any

from millstream import Context, Field, Server, Settings, ToolError

SECRET = "the vault is behind the painting"
BY_HAND = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
    "required": ["items"],
    "$defs": {"item": {"type": "object", "properties": {"isbn": {"type": "string"}}}},
}


@dataclass
class Name:
    name: str


def make_shop(**settings: Any) -> Server:
    """A fresh server."""
    mcp = Server(
        "shop",
        version="1",
        settings=Settings(**{"secret_key": "a secret of the tests that is long enough", **settings}),
    )
    stock(mcp)
    return mcp


def stock(mcp: Server) -> None:
    """What it has."""

    @mcp.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @mcp.tool
    async def ask(ctx: Context, topic: str = "") -> str:
        """Ask for a name."""
        person = await ctx.elicit("Who is there?", Name)
        return f"It is {person.name}."

    @mcp.tool(requires={"sampling": {}})
    async def sampler() -> str:
        """Needs a client that samples."""
        return "sampled"

    @mcp.tool
    def routed(region: Annotated[str, Field(header="Region")]) -> str:
        """Has a parameter that travels as a header."""
        return region

    @mcp.tool
    def refuses() -> str:
        """Fails with a text for the model."""
        raise ToolError("Try another day.")

    @mcp.tool
    def breaks() -> str:
        """Fails with what nobody may see."""
        raise RuntimeError(SECRET)

    @mcp.tool
    def lies() -> list[int]:
        """Returns what its schema forbids."""
        return ["one"]  # type: ignore[list-item]

    @mcp.resource("shop://sign")
    def sign() -> str:
        """A text."""
        return "Open."

    @mcp.prompt
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"Greet {name}."

    promise(mcp)


def promise(mcp: Server) -> None:
    """Tools whose schemas are written by hand."""

    @mcp.tool(input_schema=BY_HAND)
    def packs(arguments: dict[str, Any]) -> str:
        """Has a schema written by hand."""
        return f"{len(arguments['items'])} items"

    @mcp.tool(output_schema=BY_HAND)
    def promises() -> dict[str, Any]:
        """Returns what its schema, written by hand, forbids."""
        return {"items": [{"isbn": 9}]}
