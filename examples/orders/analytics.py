"""The analytics service: it counts what is ordered."""

from collections import Counter

from services import consuming

from millstream import Server

mcp = Server("analytics", lifespan=consuming(lambda: count))
copies: Counter[str] = Counter()


async def count(order: dict[str, str | int]) -> None:
    """Add one order."""
    copies[str(order["item"])] += int(order["copies"])


@mcp.tool
def report() -> dict[str, int]:
    """Return the copies of each item since the start."""
    return dict(copies)


if __name__ == "__main__":
    mcp.run(transport="http")
