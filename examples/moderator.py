"""A server that reads its own channels: ``millstream run moderator.py``."""

import asyncio
import json
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
        text = text_of(event.data or b"")
        if text.isupper():
            await mcp.hub.publish("warnings", {"channel": event.channel, "text": text})


def text_of(message: bytes) -> str:
    """Return the text of a message: plain text, or JSON such as ``{"name": "Ada", "text": "Hello"}``."""
    try:
        return str(json.loads(message)["text"])
    except (ValueError, TypeError, KeyError):
        return message.decode(errors="replace")


mcp = Server("moderator", serve="hub", lifespan=lifespan)
