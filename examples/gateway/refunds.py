"""A shop that pays refunds, to put behind a gateway with refunds.toml."""

from pathlib import Path

from millstream import Server

mcp = Server("shop")
PAID = Path("refunds.csv")


@mcp.tool
def refund(order: str, amount: int, reason: str = "") -> str:
    """Pay back an amount for an order."""
    with PAID.open("a", encoding="utf-8") as paid:
        paid.write(f"{order},{amount}\n")
    return f"Paid back {amount} for order {order}."


if __name__ == "__main__":
    mcp.run()
