"""A stock of books: errors that a model can act on. ``millstream dev stock.py``."""

# region: tool-error
from millstream import Context, Declined, Server, ToolError

mcp = Server("stock")

STOCK = {"momo": 3, "emma": 0}


@mcp.tool
def buy(title: str, copies: int = 1) -> str:
    """Buy copies of a book."""
    if title not in STOCK:
        raise ToolError(f"There is no book {title!r}. Use one of {', '.join(STOCK)}.")
    left = STOCK[title]
    if not left:
        others = [each for each, copies in STOCK.items() if copies]
        raise ToolError(f"{title!r} is sold out. Offer another title: {', '.join(others)}.")
    if copies > left:
        raise ToolError(f"Only {left} copies are left. Ask for fewer.")
    STOCK[title] -= copies
    return f"Bought {copies} of {title!r}."


# endregion


# region: unexpected
@mcp.tool
def price(title: str) -> int:
    """Look up the price of a book."""
    return {"momo": 12}[title]


# endregion


# region: translate
@mcp.tool
def supplier(title: str) -> str:
    """Look up who supplies a book."""
    try:
        return {"momo": "Thienemann"}[title]
    except KeyError as error:
        raise ToolError(f"No supplier is known for {title!r}.") from error


# endregion


# region: declined
@mcp.tool
async def gift(title: str, ctx: Context) -> str:
    """Send a book as a gift."""
    try:
        card = await ctx.elicit("What should the card say?", str)
    except Declined:
        card = "With best wishes"
    return f"{title!r} is on its way, with the card {card!r}."


# endregion

if __name__ == "__main__":
    mcp.run()
