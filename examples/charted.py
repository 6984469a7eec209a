"""A tool whose result has a view: a chart, in hosts that show apps."""

# region: server
from typing import Any

from millstream import Server, ToolResult
from millstream.extensions.apps import Apps

mcp = Server("bookshop")
apps = mcp.extend(Apps())
apps.add("charts", border=True)


@apps.tool("ui://charts/sales")
def sales(year: int) -> ToolResult:
    """Return how many books were sold in each month of a year."""
    months: list[dict[str, Any]] = [{"name": "Jan", "copies": 12}, {"name": "Feb", "copies": 30}]
    summary = f"{sum(month['copies'] for month in months)} books were sold in {year}."
    return ToolResult(summary, structured={"months": months})


# endregion

if __name__ == "__main__":
    mcp.run()
