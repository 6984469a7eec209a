"""Lists the tools of a server with the official Python SDK, 1.x or 2.x, page by page: `tools.py COMMAND…`.

Prints the names as JSON.
"""

import asyncio
import json
import sys
from typing import Any

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import PaginatedRequestParams


async def main() -> None:
    names: list[str] = []
    parameters = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:])
    async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
        await session.initialize()
        cursor: Any = None
        while True:
            page: Any = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            names += [tool.name for tool in page.tools]
            cursor = page.nextCursor if hasattr(page, "nextCursor") else page.next_cursor
            if not cursor:
                break
    sys.stdout.write(json.dumps(names))


asyncio.run(main())
