"""A server whose calls are hard to write down: arguments that also travel as headers, and text with every sign."""

from typing import Annotated

from millstream import Field, Server

mcp = Server("exporting", serve="all")


@mcp.tool
def region(place: Annotated[str, Field(header="Region")], note: str = "") -> str:
    """Where to go."""
    return f"{place}: {note}"


@mcp.resource("note://été/{number}")
def note(number: str) -> str:
    """A note."""
    return f"note {number}"


@mcp.prompt
def hello(name: str) -> str:
    """Greet."""
    return f"Hi {name}"
