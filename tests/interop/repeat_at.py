"""The official Python SDK, 1.x or 2.x, or fastmcp calls a tool several times at once:
``repeat_at.py URL KEY MODE [ANSWER]``.

Each line on stdin is JSON with the tool, its arguments, `_meta`, and the number of calls. Prints the texts of the
questions and results. MODE is how line 2 and fastmcp negotiate. ANSWER is what the person at the client answers.
"""

import asyncio
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import mcp.client.streamable_http as http
from mcp import types


async def main(url: str, key: str, mode: str, said: str = "") -> None:
    """Serve the lines with one client."""
    headers, asked = {"authorization": f"Bearer {key}"}, list[str]()

    async def elicit(context: Any, params: Any) -> Any:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"answer": said})

    able: Any = {"elicitation_callback": elicit} if said else {}
    if find_spec("fastmcp") is not None:
        from fastmcp import Client  # type: ignore[import-not-found]  # noqa: PLC0415  its environment only

        if said:
            able = {"elicitation_handler": lambda message, kind, params, context: elicit(context, params)}
        async with Client(url, auth=key, mode=mode, **able) as client:
            await _serve(client, asked, raise_on_error=False)
    elif version("mcp").startswith("1."):
        from mcp import ClientSession  # noqa: PLC0415  line 1 only

        opening: Any = http.streamablehttp_client(url, headers=headers)  # type: ignore[attr-defined]
        async with opening as streams, ClientSession(*streams[:2], **able) as session:
            await session.initialize()
            await _serve(session, asked)
    else:
        import httpx2  # noqa: PLC0415  line 2 only
        from mcp import Client  # noqa: PLC0415

        async with (
            httpx2.AsyncClient(headers=headers) as sender,
            Client(http.streamable_http_client(url, http_client=sender), mode=mode, **able) as client,
        ):
            await _serve(client, asked)


async def _serve(client: Any, asked: list[str], **options: Any) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, arguments, meta, times = json.loads(line)
        calls = (client.call_tool(name, arguments, meta=meta, **options) for _ in range(times))
        texts = ["\n".join(block.text for block in each.content) for each in await asyncio.gather(*calls)]
        sys.stdout.write(f"{json.dumps(asked + texts)}\n")
        sys.stdout.flush()
        asked.clear()


asyncio.run(main(*sys.argv[1:]))
