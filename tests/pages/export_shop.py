"""A server whose calls are hard to export: arguments that are also sent as headers, and text with special
characters."""

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
