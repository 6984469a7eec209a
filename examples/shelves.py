"""A bookshop's resources, templates, completion, and subscriptions. ``millstream dev shelves.py``."""

# region: fixed
from dataclasses import dataclass

from millstream import ProtocolError, ResourceLink, Server

mcp = Server("bookshop")


@dataclass
class Book:
    title: str
    pages: int


BOOKS = {"9780261103573": Book("The Lord of the Rings", 1178), "9780141439600": Book("Middlemarch", 880)}
ORDERS: list[str] = []


@mcp.resource("shop://opening-hours", mime_type="text/plain")
def opening_hours() -> str:
    """When the shop is open."""
    return "Monday to Friday, 9 to 17"


# endregion


# region: template
@mcp.resource("book://{isbn}")
def book(isbn: str) -> Book:
    """Title and length of a book."""
    if isbn not in BOOKS:
        raise ProtocolError(-32602, f"There is no book {isbn!r}.")
    return BOOKS[isbn]


# endregion


# region: complete
@mcp.complete("book://{isbn}", argument="isbn")
def known_isbns(value: str, arguments: dict[str, str]) -> list[str]:
    """ISBNs that begin with what the person typed."""
    return [isbn for isbn in BOOKS if isbn.startswith(value)]


# endregion


# region: updated
@mcp.resource("shop://orders", mime_type="application/json")
def orders() -> list[str]:
    """Books on order."""
    return ORDERS


@mcp.tool
async def order(isbn: str) -> ResourceLink:
    """Order a book."""
    ORDERS.append(isbn)
    await mcp.resource_updated("shop://orders")
    return ResourceLink(f"book://{isbn}", BOOKS[isbn].title)


# endregion


# region: private
@mcp.resource("shop://staff/rota", scopes=["staff"], tags=["internal"])
def rota() -> str:
    """Who works when."""
    return "Ada: Monday. Ben: Tuesday."


# endregion

if __name__ == "__main__":
    mcp.run()
