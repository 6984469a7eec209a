"""A server that tells its subscribers when it stops: ``millstream run closing.py``."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from millstream import Server


@asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[None, None]:
    """Say goodbye while subscribers are still connected."""
    server.hub.on_stop(say_goodbye)
    yield


async def say_goodbye() -> None:
    """Publish the last event."""
    await mcp.hub.publish("broadcast", "Back in a minute", event="stopping")


mcp = Server("closing", serve="hub", lifespan=lifespan)
