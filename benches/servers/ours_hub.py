"""Our server for the rows of hubs, events, and tasks of `benches.traffic`."""

import asyncio

from msgspec import Struct

from millstream import Server, Settings
from millstream.extensions.events import Events

events = Events(webhooks=False)
mcp = Server(
    "bench",
    version="1",
    serve="hub",
    extensions=[events],
    settings=Settings(
        secret_key="k" * 40,
        max_calls=400_000,
        max_tasks=200_000,
        max_tasks_per_caller=200_000,
        max_streams=40_000,
    ),
)


@events.event("order.paid")
class OrderPaid(Struct):
    """A customer paid an order."""

    order: str
    customer: str


@mcp.tool(task="required")
async def wait() -> str:
    """Run until the server stops."""
    await asyncio.Event().wait()
    return "stopped"


@mcp.tool(task="required")
async def finish() -> str:
    """End at once."""
    return "finished"
