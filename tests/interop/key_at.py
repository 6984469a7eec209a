"""The official Python SDK, 1.x or 2.x, or fastmcp calls a tool at one MCP address with a key: ``key_at.py URL KEY``.

Uses HTTP+SSE if the path is the stream's. Prints the names of the tools, and the tool's result.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any


async def main(url: str, key: str) -> None:
    """List the tools, and call one."""
    if find_spec("fastmcp") is not None:
        from fastmcp import Client  # type: ignore[import-not-found]  # noqa: PLC0415  its environment only

        async with Client(url, auth=key) as client:
            tools, said = await client.list_tools(), (await client.call_tool("who", {})).content[0]
    else:
        tools, said = await _use_sdk(url, {"authorization": f"Bearer {key}"})
    sys.stdout.write(json.dumps({"tools": [each.name for each in tools], "said": said.text}))


async def _use_sdk(url: str, headers: dict[str, str]) -> Any:
    import mcp.client.streamable_http as http  # noqa: PLC0415  fastmcp may have another version
    from mcp import ClientSession  # noqa: PLC0415
    from mcp.client.sse import sse_client  # noqa: PLC0415

    opening: Any
    if url.endswith("/sse"):
        opening = sse_client(url, headers=headers)
    elif version("mcp").startswith("1."):
        opening = http.streamablehttp_client(url, headers=headers)  # type: ignore[attr-defined]
    else:
        import httpx2  # noqa: PLC0415  line 2 only

        opening = http.streamable_http_client(url, http_client=httpx2.AsyncClient(headers=headers))
    async with opening as streams, ClientSession(*streams[:2]) as session:
        await session.initialize()
        result: Any = await session.call_tool("who", {})
        return (await session.list_tools()).tools, result.content[0]


asyncio.run(main(*sys.argv[1:]))
