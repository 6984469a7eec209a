"""The last 1.x release of the official Python SDK while its server restarts: `restart_one.py URL`.

Prints `ready`, waits for a line, and then prints the notifications since the restart as JSON.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession, types
from mcp.client.streamable_http import streamablehttp_client
from pydantic import AnyUrl

COUNTER = AnyUrl("note://counter")


async def main(url: str) -> None:
    heard: list[str] = []
    news = asyncio.Event()

    async def take(message: Any) -> None:
        if isinstance(message, types.ServerNotification):
            heard.append(message.root.method)
            news.set()

    async def until(method: str) -> None:
        while method not in heard:
            news.clear()
            await news.wait()

    async with streamablehttp_client(url) as streams, ClientSession(*streams[:2], message_handler=take) as session:
        await session.initialize()
        await session.subscribe_resource(COUNTER)
        while "notifications/resources/updated" not in heard:  # until the stream is open
            await session.call_tool("bump", {})
            await asyncio.sleep(0.05)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        heard.clear()
        await session.call_tool("bump", {})
        await until("notifications/resources/list_changed")  # the stream is open again
        heard.clear()
        await session.subscribe_resource(COUNTER)
        await session.call_tool("bump", {})
        await until("notifications/resources/updated")
        await session.call_tool("grow", {})
        await until("notifications/tools/list_changed")
        tools = [each.name for each in (await session.list_tools()).tools]
        sys.stdout.write(json.dumps({"heard": sorted(heard), "tools": tools}) + "\n")


asyncio.run(main(sys.argv[1]))
