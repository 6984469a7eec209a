"""The same calls with the official SDK (``pip install mcp``), without a model: connect, list, call.

``MCP_SERVER_AUTH_KEY=my_secret_key python3 sdk_client.py http://localhost:8000/sse``
"""

import asyncio
import os
import sys

from mcp import ClientSession
from mcp.client.sse import sse_client


async def main(url: str) -> None:
    headers = {"Authorization": f"Bearer {os.environ['MCP_SERVER_AUTH_KEY']}"}  # 1. the address and the key
    async with (
        sse_client(url, headers=headers) as (read, write),  # 2. connect: GET /sse, whose first event is `endpoint`
        ClientSession(read, write) as session,
    ):
        await session.initialize()  # 3. begin the session
        offered = await session.list_tools()  # 4. what the server offers
        print("Tools:", ", ".join(tool.name for tool in offered.tools))
        result = await session.call_tool("get_current_time", {"timezone": "Europe/Paris"})  # 5. call a tool
        print(*(block.text for block in result.content if block.type == "text"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
