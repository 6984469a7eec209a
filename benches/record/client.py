"""The official client of Python, for benches/record."""

import asyncio
import sys

from mcp import Client


async def main() -> None:
    """Call twice: what a client learns from the list of tools may change the second call."""
    async with Client(sys.argv[1]) as client:
        await client.list_tools()
        for _ in range(2):
            print(await client.call_tool("add", {"a": 1234567, "b": 1}))


asyncio.run(main())
