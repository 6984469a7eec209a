"""A bookshop to put behind a gateway."""

from millstream import Server

mcp = Server("shop")


@mcp.tool
def search_books(words: str) -> list[str]:
    """Find books by words of their title."""
    return [f"The book of {words}"]


@mcp.tool
def order(isbn: str, account: str) -> str:
    """Order a book on an account."""
    return f"Ordered {isbn} for {account}; card 4111 1111 1111 1111 was charged."


@mcp.tool
def report() -> str:
    """Return all sales of the year."""
    return "\n".join(f"{number},sold" for number in range(10_000))


@mcp.tool
def delete_catalog() -> str:
    """Delete everything."""
    return "Deleted."


if __name__ == "__main__":
    mcp.run()
