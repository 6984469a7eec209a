"""A bookstore with a database, and carts. ``millstream dev bookstore.py``."""

# region: lifespan
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from millstream import Context, Server, SyncContext, ToolError

TABLES = """
create table if not exists books (title text primary key, copies integer);
create table if not exists carts (id text primary key);
create table if not exists cart_books (cart text, title text);
"""


@dataclass
class App:
    db: sqlite3.Connection


@asynccontextmanager
async def lifespan(server: Server) -> AsyncIterator[App]:
    db = sqlite3.connect("bookstore.db", check_same_thread=False)
    db.isolation_level = None  # each statement is its own transaction
    try:
        db.executescript(TABLES)
        yield App(db)
    finally:
        db.close()


mcp = Server("bookstore", lifespan=lifespan)


@mcp.tool
def deliver(title: str, copies: int, ctx: SyncContext) -> str:
    """Add copies of a book to the stock."""
    app: App = ctx.lifespan
    app.db.execute("insert or ignore into books values (?, 0)", (title,))
    app.db.execute("update books set copies = copies + ? where title = ?", (copies, title))
    return f"{copies} copies of {title!r} arrived."


@mcp.tool
def in_stock(title: str, ctx: SyncContext) -> int:
    """Count the copies of a book in stock."""
    app: App = ctx.lifespan
    found = app.db.execute("select copies from books where title = ?", (title,))
    row = found.fetchone()
    return row[0] if row else 0


# endregion


# region: session
@mcp.tool
async def remember(title: str, ctx: Context) -> list[str]:
    """Put a book on the list of this session."""
    if not ctx.session_state:
        raise ToolError("Your client has no session. Use create_cart instead.")
    titles: list[str] = await ctx.session_state.update("titles", lambda old: [*old, title], [])
    return titles


# endregion


# region: user
@mcp.tool
async def mark_as_read(title: str, ctx: Context) -> list[str]:
    """Put a book on your list of books that you have read."""
    if not ctx.user_state:
        raise ToolError("Sign in to keep a list.")
    titles: list[str] = await ctx.user_state.update("read", lambda old: [*old, title], [])
    return titles


# endregion


# region: handle
@mcp.tool
def create_cart(ctx: SyncContext) -> str:
    """Create a cart, and return its id. Pass the id to add_to_cart."""
    app: App = ctx.lifespan
    cart = secrets.token_urlsafe(8)
    app.db.execute("insert into carts values (?)", (cart,))
    return cart


@mcp.tool
def add_to_cart(cart: str, title: str, ctx: SyncContext) -> list[str]:
    """Put a book into a cart, and return its books."""
    app: App = ctx.lifespan
    found = app.db.execute("select id from carts where id = ?", (cart,))
    if found.fetchone() is None:
        raise ToolError("There is no such cart. Call create_cart first.")
    app.db.execute("insert into cart_books values (?, ?)", (cart, title))
    rows = app.db.execute("select title from cart_books where cart = ?", (cart,))
    return [title for (title,) in rows]


# endregion

if __name__ == "__main__":
    mcp.run()
