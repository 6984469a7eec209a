"""The direct execution example of a page about Streamable HTTP servers, with the import of the official SDK."""

from millstream.compat.fastmcp import FastMCP

mcp = FastMCP("My App")


@mcp.tool()
def add(a: int, b: int) -> int:
    """Add two numbers"""
    return a + b


if __name__ == "__main__":
    mcp.run()
