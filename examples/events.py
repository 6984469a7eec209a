"""A shop whose events agents receive: by polls, streams, and webhooks."""

# region: server
from dataclasses import dataclass

from millstream import Principal, Server
from millstream.extensions.events import Events

mcp = Server("shop", serve="hub")
events = mcp.extend(Events(recent_events_tool=True))


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


# region: match
@dataclass
class AtLeast:
    """Refunds to receive."""

    total: float = 0


@dataclass
class Refunded:
    """An order was refunded."""

    order: str
    customer: str
    total: float


def is_own(event: Refunded, wanted: AtLeast, principal: Principal | None) -> bool:
    return principal is not None and event.customer == principal.subject and event.total >= wanted.total


events.event("order.refunded", arguments=AtLeast, match=is_own, scopes=["orders"])(Refunded)
# endregion

if __name__ == "__main__":
    mcp.run()
