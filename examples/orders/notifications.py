"""The notification service: it tells everyone who listens at the hub's /events about each order."""

from services import HUB, Order, connect, consuming

from millstream import Server

mcp = Server("notifications", lifespan=consuming(lambda: notify, name="notifications"))
sent: list[str] = []


async def notify(order: Order) -> None:
    """Send one message."""
    message = f"{order.name} ordered {order.copies} × {order.item}."
    async with connect(HUB) as hub:
        await hub.call("send_sse_message", message=message)
    sent.append(message)


@mcp.tool
def list_sent() -> list[str]:
    """Return the messages since the start."""
    return sent


if __name__ == "__main__":
    mcp.run(transport="http")
