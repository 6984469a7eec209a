"""The hub between the services: it broadcasts what they send, and tells each listener what it missed."""

from millstream import Context, Server

mcp = app = Server("hub", serve="all")


@mcp.tool
async def send_sse_message(message: str, ctx: Context) -> str:
    """Send a message to everyone who listens at /events."""
    sent = await ctx.hub.publish("broadcast", message)
    return f"Sent to {sent.subscribers} listeners on this worker."


@mcp.tool
async def publish_order(order: dict[str, str | int], ctx: Context) -> str:
    """Publish an order on the channel orders.created. The id of the order makes a second attempt harmless."""
    sent = await ctx.hub.publish("orders.created", order, id=str(order["order"]))
    return str(sent.id)


if __name__ == "__main__":
    mcp.run(transport="http")
