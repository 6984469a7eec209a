from millstream import Cancelled, Context, Declined, Server, ToolAnnotations

mcp = Server("shelf")
BOOKS = ["Momo", "Middlemarch", "The Hobbit"]


@mcp.tool
def books() -> list[str]:
    """List the books on the shelf."""
    return BOOKS


@mcp.tool(annotations=ToolAnnotations(destructive_hint=True))
async def clear(ctx: Context) -> str:
    """Delete all books."""
    try:
        sure = await ctx.elicit(f"Delete {len(BOOKS)} books? This can't be undone.", bool)
    except (Declined, Cancelled):
        sure = False
    if not sure:
        return "Nothing was deleted."
    BOOKS.clear()
    return "The shelf is empty."
