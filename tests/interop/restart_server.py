"""A server with a resource that changes and a list of tools that grows."""

from millstream import Server

mcp = Server("restarts")


@mcp.resource("note://counter")
def counter() -> str:
    """Count."""
    return "1"


def extra() -> str:
    return "hi"


@mcp.tool
async def bump() -> str:
    """Change the counter."""
    await mcp.resource_updated("note://counter")
    return "bumped"


@mcp.tool
def grow() -> str:
    """Add a tool."""
    mcp.tool(name="extra")(extra)
    return "grown"
