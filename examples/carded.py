"""A server with a card, which says where it is and what it's for."""

# region: server
from millstream import Info, Server, Settings

mcp = Server(
    "bookshop",
    version="1.0.0",
    info=Info(
        title="Book shop",
        description="Search books, and order them.",
        website_url="https://shop.example.com",
    ),
    settings=Settings.load(card_url="https://shop.example.com/mcp"),
)


@mcp.tool
def price(isbn: str) -> int:
    """Price of a book, in cents."""
    return 100 * len(isbn)


# endregion

if __name__ == "__main__":
    mcp.run()
