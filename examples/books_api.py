"""The operations of a FastAPI application as tools.

It needs ``pip install fastapi httpx2``. Then: ``millstream run books_api.py``.
"""

from fastapi import FastAPI, HTTPException

from millstream import Server

app = FastAPI(title="Books")
TITLES = {"9780261103573": "The Lord of the Rings", "9780141439600": "A Tale of Two Cities"}


@app.get("/books/{isbn}", operation_id="get_book")
def get_book(isbn: str) -> dict[str, str]:
    """Look up a book by its ISBN."""
    if isbn not in TITLES:
        raise HTTPException(404, "There is no such book.")
    return {"isbn": isbn, "title": TITLES[isbn]}


@app.post("/orders", operation_id="order_book")
def order_book(isbn: str, copies: int = 1) -> str:
    """Order copies of a book."""
    return f"Ordered {copies} of {isbn}"


mcp = Server.from_fastapi(app)
