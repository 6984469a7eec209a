"""A program for the official SDK's MCPServer: ``pip install "mcp>=2"``, then ``millstream run other_library.py``."""

from mcp.server import MCPServer

mcp = MCPServer("bookshop")


@mcp.tool()
def price(isbn: str) -> float:
    """Return the price of a book."""
    return 9.99 if isbn.startswith("978") else 4.99


if __name__ == "__main__":
    mcp.run()
