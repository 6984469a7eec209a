"""A gateway with names that begin alike, end alike, or are the same: 40 tools, or as many as ALIKE says."""

import os

from millstream import Server

WAREHOUSES = [
    "warehouse",
    "warehouse-of-the-north-western-region",
    "warehouse-of-the-north-eastern-region",
]
mcp = Server("alike", serve="all")
total = int(os.environ.get("ALIKE", "40"))


def numbered(number: int = 0) -> int:
    """Do what the name says."""
    return number


def counter() -> str:
    """How many there are."""
    return "7"


def book(isbn: str) -> str:
    """Read a book."""
    return isbn


for place, name in enumerate(WAREHOUSES):
    server = Server(name)
    alike = [f"list_{name}_{word}" for word in ("issues", "orders")] if place else ["ask", "ask_name"]
    alike += [
        f"synchronize_the_{color}_ledger_with_the_general_accounting_of_all_{side}_regions"
        for color in ("red", "blue")
        for side in ("northern", "southern")
    ]
    for text in alike:
        server.tool(numbered, name=text)
    server.tool(numbered, name="issues", title="List issues")
    count = total // len(WAREHOUSES) + (place < total % len(WAREHOUSES)) - len(alike) - 1
    for number in range(count):
        server.tool(numbered, name=f"recalculate_projected_inventory_levels_for_location_{number:03d}")
    server.resource(f"counter://{name}/value", name="counter", title="Stock counter")(counter)
    server.resource("book://{isbn}", name="book", title="Book by number")(book)
    mcp.upstream(name, server)
