"""A folder as resources, and a tool that reads one of them."""

from pathlib import Path

from millstream import Context, Server

mcp = Server("documents")

# region: files
mcp.files("docs://", Path(__file__).parent / "site")
# endregion


@mcp.tool
async def title(path: str, ctx: Context) -> str:
    """The first line of a document."""
    found = await ctx.read_resource(f"docs://{path}")
    return str(found.resource.text).splitlines()[0]
