"""A tool with long results, of which a model gets the beginning."""

# region: server
from millstream import Server

mcp = Server("sales")


@mcp.tool(result_tokens=1500)
def sales(year: int) -> str:
    """Return the sales of a year, as CSV."""
    rows = [
        f"{year}-{day // 30 + 1:02}-{day % 30 + 1:02},{book},{day * book % 9}"
        for day in range(360)
        for book in range(20)
    ]
    return "\n".join(["day,book,copies", *rows])


# endregion


if __name__ == "__main__":
    mcp.run()
