"""A server whose tools tell pages what happens."""

# region: server
from millstream import Context, Server

mcp = Server("news", serve="hub")


@mcp.tool
async def announce(text: str) -> str:
    """Tell everybody who listens to the news."""
    sent = await mcp.hub.publish("news", {"text": text})
    return f"{sent.subscribers} on this worker heard it."


# endregion


# region: context
@mcp.tool
async def order(isbn: str, ctx: Context) -> str:
    """Order a book."""
    await ctx.hub.publish("orders.created", {"isbn": isbn}, event="order")
    return "ordered"


# endregion

if __name__ == "__main__":
    mcp.run()
