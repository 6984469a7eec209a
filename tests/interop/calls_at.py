"""The official Python SDK, 1.x or 2.x, calls tools when told: ``calls_at.py URL``.

Each line on stdin names a tool. Prints a line for each: the text of the result, or the error. Ends with stdin.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from typing import Any


async def main(url: str) -> None:
    """Call a tool for each line."""
    if version("mcp").startswith("1."):
        from mcp import ClientSession  # noqa: PLC0415  differs between the lines
        from mcp.client.streamable_http import streamablehttp_client  # type: ignore[attr-defined]  # noqa: PLC0415

        async with streamablehttp_client(url) as streams, ClientSession(*streams[:2]) as session:
            await session.initialize()
            await _serve(session)
    else:
        from mcp import Client  # noqa: PLC0415

        async with Client(url, mode="legacy") as client:
            await _serve(client)


async def _serve(client: Any) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            said = (await client.call_tool(line.strip(), {})).content[0].text
        except Exception as exc:  # the test reads it
            said = repr(exc)
        sys.stdout.write(f"{json.dumps(said)}\n")
        sys.stdout.flush()


asyncio.run(main(*sys.argv[1:]))
