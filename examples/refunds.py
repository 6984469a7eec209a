"""A shop that tells each customer about their own refunds."""

import os
from dataclasses import dataclass

from millstream import Principal, Server, auth
from millstream.extensions.events import Events

people = auth.keys(
    named_keys={
        "Ada": (os.environ["ADA_KEY"], ["orders"]),
        "Bob": (os.environ["BOB_KEY"], ["orders", "staff"]),
    }
)
mcp = Server("refunds", serve="hub", auth=people)
events = mcp.extend(Events(recent_events_tool=True))


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


@mcp.tool(scopes=["staff"])
async def refund(order: str, customer: str, total: float) -> str:
    """Refund an order."""
    await events.publish(Refunded(order, customer, total))
    return f"Refunded {order}"
