"""The server for measurements of the pages.

It sends messages at a given rate, for a given time. `talk` publishes to the chat's channel and writes to the log, which
the dashboard shows. `log` sends log messages to its caller, such as the inspector. Both return the number of messages
sent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from millstream import Context, Server

mcp = Server("talker", serve="all")
logger = logging.getLogger("talker")
TICK = 0.01


async def ticks(rate: int, seconds: float) -> AsyncIterator[int]:
    """Yield numbers at a rate per second. After a delay, the missed ones follow immediately."""
    begun, number = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        for _ in range(int(passed * rate) - number):
            number += 1
            yield number
        await asyncio.sleep(TICK)


@mcp.tool
async def talk(rate: int, seconds: float) -> int:
    """Write to the chat and to the log."""
    number = 0
    async for number in ticks(rate, seconds):
        said = {"name": f"Person {number % 5}", "message": f"Message {number} of a long talk", "time": time.time()}
        await mcp.hub.publish("chat", said)
        logger.warning("Line %d", number)
    return number


@mcp.tool
async def log(rate: int, seconds: float, ctx: Context) -> int:
    """Send log messages to the caller."""
    number = 0
    async for number in ticks(rate, seconds):
        await ctx.log("info", f"Line {number}")
    return number
