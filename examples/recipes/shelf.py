"""A shelf of books. A person has to agree before a tool empties it."""

from dataclasses import dataclass
from typing import Annotated

from millstream import Context, Declined, Field, Server, ToolAnnotations

mcp = Server("shelf")
BOOKS = ["Momo", "Middlemarch", "The Hobbit"]


@dataclass
class Confirmation:
    delete: Annotated[bool, Field(description="Delete them all")] = False


@mcp.tool
def books() -> list[str]:
    """List the books on the shelf."""
    return BOOKS


@mcp.tool(annotations=ToolAnnotations(destructive_hint=True))
async def clear(ctx: Context) -> str:
    """Delete all books."""
    try:
        answer = await ctx.elicit(f"Delete {len(BOOKS)} books? This can't be undone.", Confirmation)
    except Declined:
        return "Nothing was deleted."
    if not answer.delete:
        return "Nothing was deleted."
    BOOKS.clear()
    return "The shelf is empty."


if __name__ == "__main__":
    mcp.run()
