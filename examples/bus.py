"""A server between browsers and agents on one side and a message bus on the other."""

# region: server
import os

from faststream.nats import NatsBroker

from millstream import Server

broker = NatsBroker(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
mcp = Server("shop", serve="hub")
# endregion

# region: from
mcp.hub.from_bus(broker, "orders.*", to="orders.{key}", stream="ORDERS")
# endregion

# region: to
mcp.hub.to_bus(broker, "requests.*", to="requests.{key}", stream="REQUESTS")


@mcp.tool
async def cancel(order: str) -> str:
    """Ask the order service to cancel an order."""
    await mcp.hub.publish(f"requests.{order}", {"do": "cancel"})
    return "Requested."


# endregion
