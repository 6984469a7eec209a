"""The server that gets the bad input: a tool for every way a call can end."""

from dataclasses import dataclass
from typing import Annotated, Any

from millstream import Context, Field, Server, Settings, ToolError

SECRET = "the vault is behind the painting"


@dataclass
class Name:
    name: str


def make_shop(**settings: Any) -> Server:
    """A fresh server."""
    mcp = Server(
        "shop", version="1", settings=Settings(**{"key": "a secret of the tests that is long enough", **settings})
    )

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

    return mcp
