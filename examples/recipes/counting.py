"""A server for stdio that one person starts. It remembers what that person asked."""

from millstream import Server

mcp = Server("counting")
ASKED: list[str] = []


@mcp.tool
def remember(word: str) -> list[str]:
    """Remember a word, and return all of them."""
    ASKED.append(word)
    return ASKED


if __name__ == "__main__":
    mcp.run(transport="stdio")
