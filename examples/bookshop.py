"""A bookshop: a tool that searches, one that asks the person where to send the books, a template and a prompt.

`order` runs unchanged on every revision from 2025-06-18 on: where the protocol lets a server ask the client, it asks;
where it does not, the request is answered with the question, and the function waits for the next one.
"""

# region: shop
from dataclasses import dataclass
from typing import Annotated, Literal

from millstream import Context, Field, Server, ToolError

mcp = Server("bookshop", version="1.0.0")


@dataclass
class Address:
    street: str
    city: str


BOOKS = {
    "9780261103573": "The Lord of the Rings, J. R. R. Tolkien, 1178 pages",
    "9780141439600": "Middlemarch, George Eliot, 880 pages",
}
# endregion


# region: search
@mcp.tool
def search(words: str) -> dict[str, str]:
    """Find books by author or title."""
    return {isbn: book for isbn, book in BOOKS.items() if words.lower() in book.lower()}


# endregion


# region: order
@mcp.tool
async def order(isbn: str, ctx: Context, copies: Annotated[int, Field(ge=1)] = 1) -> dict[str, int]:
    """Order copies of a book."""
    if isbn not in BOOKS:
        raise ToolError("We don't have that book. Search for another one.")
    await ctx.elicit("Where should we send it?", Address)
    for n in range(copies):
        await ctx.progress(n + 1, copies)
    return {"ordered": copies}


# endregion


# region: book
@mcp.resource("book://{isbn}")
async def book(isbn: str) -> str:
    """Title, author and length of a book."""
    return BOOKS.get(isbn, f"We don't have {isbn}.")


# endregion


# region: review
@mcp.prompt
def review(isbn: str, tone: Literal["dry", "warm"] = "warm") -> str:
    """Ask the model for a review of a book."""
    return f"Write a {tone} review of the book {BOOKS.get(isbn, isbn)}."


# endregion


# region: complete
@mcp.complete("review", argument="isbn")
def known_isbns(value: str, arguments: dict[str, str]) -> list[str]:
    """The books of the shop, as the person types."""
    return [isbn for isbn in BOOKS if isbn.startswith(value)]


# endregion


# region: main
if __name__ == "__main__":
    mcp.run()  # HTTP, or stdio if standard input is piped
# endregion
