"""A warehouse to put behind the same gateway as the shop."""

from millstream import Server

mcp = Server("warehouse")

COPIES = {"9780261103573": 7, "9780141439600": 0}


@mcp.tool
def count(isbn: str) -> int:
    """Return how many copies of a book are in the warehouse."""
    return COPIES.get(isbn, 0)


@mcp.resource("stock://empty")
def empty() -> list[str]:
    """The books that have to be ordered again."""
    return [isbn for isbn, copies in COPIES.items() if copies == 0]


if __name__ == "__main__":
    mcp.run()
