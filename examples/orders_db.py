"""Dependencies: a connection for each call, committed if the call succeeds."""

# region: database
import sqlite3
from collections.abc import Iterator
from typing import Annotated

from millstream import Context, Depends, Server, SyncContext

mcp = Server("orders")


def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("orders.db", check_same_thread=False)
    try:
        connection.execute("create table if not exists orders (isbn text, customer text)")
        yield connection
        connection.commit()
    finally:
        connection.close()


Database = Annotated[sqlite3.Connection, Depends(database)]


@mcp.tool
def order(isbn: str, db: Database, ctx: SyncContext) -> str:
    """Order a book."""
    name = ctx.principal.subject if ctx.principal is not None else "anonymous"
    db.execute("insert into orders values (?, ?)", (isbn, name))
    return "ordered"


# endregion


# region: nested
async def customer(ctx: Context, db: Database) -> str:
    """Return the name under which the caller orders."""
    return ctx.principal.subject if ctx.principal is not None else "anonymous"


@mcp.tool
async def my_orders(db: Database, name: str = Depends(customer)) -> list[str]:
    """List what you have ordered so far."""
    return [isbn for (isbn,) in db.execute("select isbn from orders where customer = ?", (name,))]


# endregion

if __name__ == "__main__":
    mcp.run()
