"""A server that reads its own channels: ``millstream run moderator.py``."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from millstream import Server


@asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[None, None]:
    """Moderate while the server runs."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(moderate())
        yield
        task.cancel()


async def moderate() -> None:
    """Publish a warning for each message that shouts."""
    async for event in mcp.hub.listen("room.*", name="moderator"):
        text = (event.data or b"").decode()
        if text.isupper():
            await mcp.hub.publish("warnings", {"channel": event.channel, "text": text})


mcp = Server("moderator", serve="hub", lifespan=lifespan)
