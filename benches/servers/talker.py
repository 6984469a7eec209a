"""What the pages are measured with: a server that says so many things a second, for as long as is asked.

`talk` publishes to the channel of the chat and writes to the log, which the dashboard shows; `log` sends log messages
to the client that called it, as the inspector does. Both give back how many they sent.
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
    """Numbers, so many a second; what a late moment has missed, the next one makes up for."""
    begun, number = time.monotonic(), 0
    while (passed := time.monotonic() - begun) < seconds:
        for _ in range(int(passed * rate) - number):
            number += 1
            yield number
        await asyncio.sleep(TICK)


@mcp.tool
async def talk(rate: int, seconds: float) -> int:
    """Say something in the chat and in the log."""
    number = 0
    async for number in ticks(rate, seconds):
        said = {"name": f"Person {number % 5}", "message": f"Message {number} of a long talk", "time": time.time()}
        await mcp.hub.publish("chat", said)
        logger.warning("Line %d", number)
    return number


@mcp.tool
async def log(rate: int, seconds: float, ctx: Context) -> int:
    """Send log messages to whoever calls."""
    number = 0
    async for number in ticks(rate, seconds):
        await ctx.log("info", f"Line {number}")
    return number
