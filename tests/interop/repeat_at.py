"""The official Python SDK, 1.x or 2.x, or fastmcp calls a tool several times at once: ``repeat_at.py URL KEY MODE``.

Each line on stdin is JSON with the tool, its arguments, `_meta`, and the number of calls. Prints the texts of the
results. MODE is how line 2 and fastmcp negotiate.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import mcp.client.streamable_http as http


async def main(url: str, key: str, mode: str) -> None:
    """Serve the lines with one client."""
    headers = {"authorization": f"Bearer {key}"}
    if find_spec("fastmcp") is not None:
        from fastmcp import Client  # type: ignore[import-not-found]  # noqa: PLC0415  its environment only

        async with Client(url, auth=key, mode=mode) as client:
            await _serve(client, raise_on_error=False)
    elif version("mcp").startswith("1."):
        from mcp import ClientSession  # noqa: PLC0415  line 1 only

        opening: Any = http.streamablehttp_client(url, headers=headers)  # type: ignore[attr-defined]
        async with opening as streams, ClientSession(*streams[:2]) as session:
            await session.initialize()
            await _serve(session)
    else:
        import httpx2  # noqa: PLC0415  line 2 only
        from mcp import Client  # noqa: PLC0415

        async with (
            httpx2.AsyncClient(headers=headers) as sender,
            Client(http.streamable_http_client(url, http_client=sender), mode=mode) as client,
        ):
            await _serve(client)


async def _serve(client: Any, **options: Any) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, arguments, meta, times = json.loads(line)
        calls = (client.call_tool(name, arguments, meta=meta, **options) for _ in range(times))
        texts = ["\n".join(block.text for block in each.content) for each in await asyncio.gather(*calls)]
        sys.stdout.write(f"{json.dumps(texts)}\n")
        sys.stdout.flush()


asyncio.run(main(*sys.argv[1:]))
