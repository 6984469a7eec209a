"""A FastAPI application that publishes on the hub of a server it mounts: uvicorn examples.fastapi_orders:app"""

# region: orders
from fastapi import FastAPI

from millstream import Server

mcp = Server("Orders", serve="hub")
app = FastAPI(lifespan=mcp.lifespan)


@app.post("/orders/{isbn}")
async def order(isbn: str) -> dict[str, str]:
    sent = await mcp.hub.publish("orders", {"isbn": isbn})
    return {"event": sent.id}


app.mount("/", mcp)
# endregion
