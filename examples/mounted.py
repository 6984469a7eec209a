"""A server that offers the tools of another one together with its own."""

# region: mount
from millstream import Server

stock = Server("stock")


@stock.tool
def find(words: str) -> list[str]:
    """Find books in stock."""
    return [title for title in ("Momo", "Emma") if words.lower() in title.lower()]


mcp = Server("shop")
mcp.mount(stock, prefix="stock")


@mcp.tool
def opening_hours() -> str:
    """When the shop is open."""
    return "Monday to Friday, 9 to 17"


# endregion

if __name__ == "__main__":
    mcp.run()
