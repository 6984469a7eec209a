"""The TM Dev Lab benchmark's three tools, which need Redis and an HTTP API: ours, and by the official Python SDK.

`millstream run shop.py` serves them, and so does `shop.py PORT WORKERS` with the SDK, uvloop, and JSON replies. Both
use the same clients: the fastest maintained ones, as measured in benches/ARCHIVE.md.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import redis.asyncio
from pyreqwest.client import Client, ClientBuilder
from typing_extensions import TypedDict

from millstream import Server


class Connections:
    """The connections of a worker's tools."""

    http: Client
    redis: Any


here = Connections()


@asynccontextmanager
async def connect(_: object) -> AsyncIterator[None]:
    """Connect to BENCH_API and BENCH_REDIS."""
    builder = ClientBuilder().base_url(f"{os.environ['BENCH_API']}/").http1_only().no_proxy()
    async with (
        builder.build() as here.http,
        # A timer for each read takes 9 µs.
        redis.asyncio.from_url(os.environ["BENCH_REDIS"], decode_responses=True, socket_timeout=None) as here.redis,
    ):
        yield


async def get(path: str, query: dict[str, Any] | None = None) -> Any:
    """Return the API's response to a GET request."""
    reply = await here.http.get(path).query(query or {}).build().send()
    return msgspec.json.decode(await reply.bytes())


class Item(TypedDict):
    """One position of an order."""

    product_id: int
    quantity: int


async def search_products(category: str, min_price: float, max_price: float, limit: int) -> str:
    """Search products by category and price."""
    query = {"category": category, "min_price": min_price, "max_price": max_price, "limit": limit}
    found, popular = await asyncio.gather(get("products/search", query), here.redis.zrevrange("bench:popular", 0, 9))
    ids = [int(name.partition(":")[2]) for name in popular]
    ranks = {product: rank for rank, product in enumerate(ids, 1)}
    kept = ("id", "sku", "name", "price", "rating")
    products = [
        {name: each[name] for name in kept} | {"popularity_rank": ranks.get(each["id"], 0)}
        for each in found["products"]
    ]
    return json.dumps(
        {
            "category": category,
            "total_found": found["total_found"],
            "products": products,
            "top10_popular_ids": ids,
        }
    )


async def get_user_cart(user_id: str) -> str:
    """Show the cart of a user."""
    cart = await here.redis.hgetall(f"bench:cart:{user_id}")
    items = json.loads(cart["items"])
    _, history = await asyncio.gather(
        get(f"products/{items[0]['product_id']}"), here.redis.lrange(f"bench:history:{user_id}", 0, 4)
    )
    shown = {"items": items, "item_count": len(items), "estimated_total": float(cart["total"])}
    return json.dumps({"user_id": user_id, "cart": shown, "recent_history": [json.loads(entry) for entry in history]})


async def checkout(user_id: str, items: list[Item]) -> str:
    """Order products."""
    entry = json.dumps({"user_id": user_id, "items": items, "ts": int(time.time())})
    pipe = here.redis.pipeline(transaction=False)
    pipe.incr(f"bench:ratelimit:user-{int(user_id.rpartition('-')[2]) % 100:05d}")
    pipe.rpush(f"bench:history:{user_id}", entry)
    pipe.zincrby("bench:popular", 1, f"product:{items[0]['product_id']}")
    request = here.http.post("cart/calculate").body_json({"user_id": user_id, "items": items}).build()
    reply, (calls, _, _) = await asyncio.gather(request.send(), pipe.execute())
    order = msgspec.json.decode(await reply.bytes())
    return json.dumps(
        {
            "order_id": order["order_id"],
            "user_id": user_id,
            "total": order["total"],
            "items_count": len(items),
            "rate_limit_count": calls,
            "status": "confirmed",
        }
    )


TOOLS = (search_products, get_user_cart, checkout)


def build() -> Any:
    """Return the application of the SDK."""
    from mcp.server.mcpserver import MCPServer  # noqa: PLC0415  ours needs none of it

    server = MCPServer("bench", log_level="WARNING", lifespan=connect)
    for tool in TOOLS:
        server.add_tool(tool, structured_output=False)
    return server.streamable_http_app(json_response=True, stateless_http=True)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        "benches.servers.shop:build",
        factory=True,
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        ws="none",
    )
else:
    mcp = Server("bench", version="1", lifespan=connect)
    for tool in TOOLS:
        mcp.tool(tool)
