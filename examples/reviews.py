"""A bookshop's prompts, with arguments, a conversation, and completion. ``millstream dev reviews.py``."""

# region: prompt
from typing import Annotated, Literal

from millstream import Field, Message, Server

mcp = Server("bookshop")

BOOKS = {"9780261103573": "The Lord of the Rings", "9780141439600": "Middlemarch"}


@mcp.prompt
def review(
    isbn: Annotated[str, Field(description="ISBN of a book in the shop")],
    tone: Literal["dry", "warm"] = "warm",
) -> str:
    """Ask the model for a review of a book."""
    return f"Write a {tone} review of {BOOKS.get(isbn, isbn)}."


# endregion


# region: conversation
@mcp.prompt(title="Choose a book")
def choose() -> list[Message]:
    """Find the right book, one question at a time."""
    titles = "\n".join(BOOKS.values())
    return [
        Message("user", f"These books are in stock:\n{titles}"),
        Message("assistant", "I've read the list. What would you like to know?"),
        Message("user", "Ask me one question at a time, and then recommend a book."),
    ]


# endregion


# region: complete
@mcp.complete("review", argument="isbn")
async def known_isbns(value: str, arguments: dict[str, str]) -> list[str]:
    """ISBNs that begin with what the person typed."""
    return [isbn for isbn in BOOKS if isbn.startswith(value)]


# endregion

if __name__ == "__main__":
    mcp.run()
