"""Carts that survive the call, the connection, and a restart: a database, and an id that the model passes on."""

import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from millstream import Server, SyncContext, ToolError

TABLES = "create table if not exists carts (id text); create table if not exists books (cart text, title text)"


@asynccontextmanager
async def lifespan(server: Server) -> AsyncIterator[sqlite3.Connection]:
    """Open the database once, for all calls."""
    with closing(sqlite3.connect("carts.db", check_same_thread=False, isolation_level=None)) as db:
        db.executescript(TABLES)
        yield db


mcp = Server("bookshop", lifespan=lifespan)


@mcp.tool
def create_cart(ctx: SyncContext) -> str:
    """Create a cart, and return its id. Pass the id to add_to_cart."""
    cart = secrets.token_urlsafe(16)
    ctx.lifespan.execute("insert into carts values (?)", (cart,))
    return cart


@mcp.tool
def add_to_cart(cart: str, title: str, ctx: SyncContext) -> list[str]:
    """Put a book into a cart, and return the cart's books."""
    db: sqlite3.Connection = ctx.lifespan
    if db.execute("select 1 from carts where id = ?", (cart,)).fetchone() is None:
        raise ToolError("There is no such cart. Call create_cart first.")
    db.execute("insert into books values (?, ?)", (cart, title))
    return [each for (each,) in db.execute("select title from books where cart = ?", (cart,))]


if __name__ == "__main__":
    mcp.run()
