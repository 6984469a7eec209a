"""A tool to test: it needs a rate of exchange, which a test replaces."""

from millstream import Depends, Server, ToolError

mcp = Server("prices")
PRICES = {"Momo": 12.0, "Middlemarch": 9.5}


async def dollars_per_euro() -> float:
    """Ask the bank. Tests use a fixed rate instead."""
    raise ToolError("The bank is closed.")


@mcp.tool
async def price(title: str, rate: float = Depends(dollars_per_euro)) -> float:
    """Return the price of a book in dollars."""
    if title not in PRICES:
        raise ToolError(f"We don't sell {title!r}.")
    return round(PRICES[title] * rate, 2)


if __name__ == "__main__":
    mcp.run()
