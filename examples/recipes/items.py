"""Options of resources and prompts, and tools that come from an API, an application, or another server."""

from pathlib import Path

from fastapi import FastAPI

from millstream import Server

mcp = Server("bookshop")


# region: resource
@mcp.resource("shop://{branch}/hours", title="Opening hours", mime_type="text/plain", scopes=["shop:read"])
def hours(branch: str) -> str:
    """When a branch is open."""
    return f"{branch}: 9 to 17"


# endregion


# region: prompt
@mcp.prompt(title="Review a book", tags=["beta"])
def review(isbn: str, tone: str = "warm") -> str:
    """Ask the model for a review of a book."""
    return f"Write a {tone} review of {isbn}."


# endregion

# region: openapi
stock = Server.from_openapi(Path(__file__).with_name("stock.json"), name="stock")
# endregion

app = FastAPI(title="Orders")


@app.post("/orders", operation_id="order_book")
def order_book(isbn: str, copies: int = 1) -> str:
    """Order copies of a book."""
    return f"Ordered {copies} of {isbn}."


# region: fastapi
orders = Server.from_fastapi(app)
# endregion

# region: upstream
mcp.upstream("orders", orders, timeout=10)
# endregion

# region: mount
branches = Server("branches")
branches.tool(hours)
mcp.mount(branches, prefix="branches", tags=["beta"], limit="60/minute")
# endregion
