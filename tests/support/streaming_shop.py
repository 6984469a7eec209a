"""A shop on several workers, with a tool that sends as many messages as a test needs."""

import asyncio

from bad_input.shop import make_shop
from fleet import EventStream, Worker
from millstream import Context, Server
from wire import request


def make_streaming_shop(**settings: int) -> Server:
    """Return a shop with a tool that logs a word at each release of `go`, and resources to subscribe to."""
    mcp = make_shop(**settings)
    mcp.go = asyncio.Semaphore(0)  # type: ignore[attr-defined]
    mcp.ended = asyncio.Event()  # type: ignore[attr-defined]

    @mcp.tool
    async def talks(ctx: Context) -> str:
        """Says words."""
        try:
            for number in range(3):
                await ctx.info(f"word {number}")
                await mcp.go.acquire()  # type: ignore[attr-defined]
        finally:
            mcp.ended.set()  # type: ignore[attr-defined]
        return "said"

    for number in range(9):
        mcp.resource(f"shelf://{number}", name=f"shelf{number}")(lambda: "full")
    return mcp


async def start_talking(worker: Worker, headers: dict[str, str]) -> EventStream:
    """Call the tool and wait for its first word."""
    stream = EventStream(await worker.post(request("tools/call", {"name": "talks", "arguments": {}}, 5), headers))
    await stream.until(1)
    return stream
