"""A FastAPI application whose orders a model can place. Run it: ``millstream run shop_api.py``."""

from fastapi import FastAPI, HTTPException

from millstream import Server
from millstream.gateway import RouteKind, RouteMap

app = FastAPI(title="Bookshop")
STOCK = {"momo": 3, "middlemarch": 0}


@app.get("/books/{title}", operation_id="copies_in_stock")
def copies_in_stock(title: str) -> int:
    """Count the copies of a book in stock."""
    return STOCK.get(title.lower(), 0)


@app.post("/orders", operation_id="order_book")
def order_book(title: str, copies: int = 1) -> str:
    """Order copies of a book."""
    if STOCK.get(title.lower(), 0) < copies:
        raise HTTPException(409, "There aren't enough copies.")
    STOCK[title.lower()] -= copies
    return f"Ordered {copies} of {title}."


@app.delete("/admin/stock")
def clear_stock() -> None:
    """Remove every book. Models don't get this one."""
    STOCK.clear()


mcp = Server.from_fastapi(app, routes=[RouteMap(pattern=r"^/admin", kind=RouteKind.EXCLUDE)])
