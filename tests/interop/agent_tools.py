"""A server for the last 1.x release of the official Python SDK, whose tools an agent calls through a gateway."""

from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

mcp = FastMCP("shop", log_level="ERROR")


class Delivery(BaseModel):
    street: str


@mcp.tool()
def report() -> str:
    """Return a long text."""
    return "\n".join(f"line {number}" for number in range(3_000))


@mcp.tool()
async def ask(ctx: Context) -> str:  # type: ignore[type-arg]
    """Ask where it goes."""
    answer = await ctx.elicit("Where?", Delivery)
    return answer.action


@mcp.tool(name="count_the_copies_of_each_book_on_every_shelf_of_the_old_shops")
def count(shelf: int) -> str:
    """Count copies."""
    return f"{shelf} copies"


mcp.run()
