"""A server that keeps a value fresh in the background. ``millstream dev exchange.py``."""

# region: background
import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from millstream import Server

logger = logging.getLogger("exchange")
RATES: dict[str, float] = {}


async def fetch_rates() -> dict[str, float]:
    """Ask the bank. Here, it's always the same."""
    return {"EUR": 1.0, "USD": 1.08}


async def refresh(server: Server) -> None:
    while True:
        try:
            RATES.update(await fetch_rates())
            await server.resource_updated("bank://rates")
        except OSError:
            logger.exception("The bank doesn't respond")
        await asyncio.sleep(60)


@asynccontextmanager
async def lifespan(server: Server) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(refresh(server))
        yield
        task.cancel()


mcp = Server("exchange", lifespan=lifespan)


@mcp.resource("bank://rates")
def rates() -> dict[str, float]:
    """Today's exchange rates."""
    return RATES


# endregion

if __name__ == "__main__":
    mcp.run()
