"""The same over standard input and output, with each step reported as it happens."""

from millstream import Context, Server

mcp = Server("add-steps", version="1.0.0")
Number = int | float


@mcp.tool
async def add_numbers(a: Number, b: Number, ctx: Context, stream: bool = False) -> Number:
    """Add two numbers; with stream=true, report each step."""
    if stream:
        await ctx.progress(1, 2, f"{a} and {b}")
        await ctx.progress(2, 2, "Adding")
    return a + b


if __name__ == "__main__":
    mcp.run("stdio")
