"""The analytics service: it counts what is ordered."""

from collections import Counter

from services import Order, consuming

from millstream import Server

mcp = Server("analytics", lifespan=consuming(lambda: count))
copies: Counter[str] = Counter()


async def count(order: Order) -> None:
    """Add one order."""
    copies[order.item] += order.copies


@mcp.tool
def report() -> dict[str, int]:
    """Return the copies of each item, in the newest 1,000 orders at the start and all since then."""
    return dict(copies)


if __name__ == "__main__":
    mcp.run(transport="http")
