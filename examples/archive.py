"""A server behind keys: callers who sign in may read, and some may write."""

# region: server
from millstream import Context, Server

mcp = Server("archive")
notes: dict[str, str] = {}


@mcp.tool
async def read(name: str) -> str:
    """Read a note."""
    return notes.get(name, "There is no such note.")


@mcp.tool(scopes=["notes:write"])
async def write(name: str, text: str, ctx: Context) -> str:
    """Write a note."""
    notes[name] = f"{text} ({ctx.principal.subject if ctx.principal else 'anonymous'})"
    return "Written."


# endregion


if __name__ == "__main__":
    mcp.run()
