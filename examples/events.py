"""A shop whose events agents receive: by polls, streams, and webhooks."""

# region: server
from dataclasses import dataclass

from millstream import Server
from millstream.extensions.events import Events

mcp = Server("shop", serve="hub")
events = mcp.extend(Events())


@events.event("order.paid")
@dataclass
class OrderPaid:
    """A customer paid an order."""

    order: str
    customer: str
    total: float


# endregion


# region: publish
@mcp.tool
async def pay(order: str, customer: str, total: float) -> str:
    """Pay an order."""
    await events.publish(OrderPaid(order, customer, total))
    return f"Paid {order}"


# endregion

if __name__ == "__main__":
    mcp.run()
