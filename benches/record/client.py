"""The official Python client, for benches/record: client.py URL [legacy]. It uses the installed mcp, 1.x or 2.x."""

import asyncio
import sys
from importlib.metadata import PackageNotFoundError, version

try:
    from mcp import Client
except ImportError:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

ARGUMENTS = {"a": 1234567, "b": 1}


async def use_first_line(url: str) -> None:
    """Call like a program for mcp 1.x."""
    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        await session.list_tools()
        await session.send_ping()
        for _ in range(2):
            print(await session.call_tool("add", ARGUMENTS))


async def use_second_line(url: str, mode: str) -> None:
    """Call like a program for mcp 2.x. The list of tools may change the second call."""
    async with Client(url, mode=mode) as client:
        await client.list_tools()
        if mode == "legacy":
            await client.send_ping()
        for _ in range(2):
            print(await client.call_tool("add", ARGUMENTS))


def describe() -> str:
    """Return the versions of the programs that make the requests."""
    found = []
    for name in ("mcp", "httpx2", "httpx"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"{' and '.join(found[:2])} on Python {sys.version.split()[0]}"


url, mode = sys.argv[1], "".join(sys.argv[2:]) or "auto"
print("source:", describe())
asyncio.run(use_first_line(url) if version("mcp").startswith("1.") else use_second_line(url, mode))
