"""Middleware of the program is given to `run_async`."""

import asyncio
import os
import sys

from mcp.server.fastmcp import FastMCP
from starlette.middleware import Middleware

mcp = FastMCP("surrounded", port=int(os.environ["FASTMCP_PORT"]))


class Doorkeeper:
    """Lets in who knows the word."""

    def __init__(self, app, word):
        self.app = app
        self.word = word

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and dict(scope["headers"]).get(b"x-word") != self.word:
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": b"The word?"})
            return
        await self.app(scope, receive, send)


@mcp.tool()
def add(a: int, b: int) -> int:
    return a + b


middleware = [Middleware(Doorkeeper, b"momo")]
if "run" in sys.argv:
    mcp.run(transport="streamable-http", middleware=middleware)
else:
    asyncio.run(mcp.run_async(transport="streamable-http", middleware=middleware))
