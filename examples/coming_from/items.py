"""Functions that are FastAPI routes and tools of MCP: uvicorn examples.coming_from.items:app"""

# region: items
from fastapi import FastAPI

from millstream import Server

mcp = Server("items")
app = FastAPI(lifespan=mcp.lifespan)


@app.get("/items/{item_id}")
@mcp.tool
async def get_item(item_id: int) -> dict[str, str]:
    """Look up an item."""
    return {"name": f"Item {item_id}"}


app.mount("/", mcp)
# endregion
