"""A server with a job of its own: it counts the books each hour, and tells the channel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream import Server

STOCK = {"Momo": 3, "Middlemarch": 0}
HOUR = 3600.0


async def count_books() -> None:
    """Publish what's out of stock, now and each hour."""
    while True:
        missing = [title for title, copies in STOCK.items() if copies == 0]
        await mcp.hub.publish("stock", {"order_again": missing})
        await asyncio.sleep(HOUR)


@asynccontextmanager
async def lifespan(server: Server) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as jobs:
        job = jobs.create_task(count_books())
        yield
        job.cancel()


mcp = Server("warehouse", serve="hub", lifespan=lifespan)


@mcp.tool
def sell(title: str) -> int:
    """Sell a book, and return how many are left."""
    STOCK[title] -= 1
    return STOCK[title]


if __name__ == "__main__":
    mcp.run()
