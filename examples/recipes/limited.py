"""A bookshop with settings of its own. Its operator can change the others by variables or options."""

# region: server
from millstream import Server, Settings

mcp = Server("shop", settings=Settings.load(limit_calls="60/minute", max_body=1_000_000))


@mcp.tool
def search(words: str) -> list[str]:
    """Search books by title."""
    return [title for title in ("The Hobbit", "Momo") if words.lower() in title.lower()]


# endregion

if __name__ == "__main__":
    mcp.run()
