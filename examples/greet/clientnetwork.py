"""A client of `servernetwork.py`: it opens an event stream, and posts its requests to the address that it hears there.

``python clientnetwork.py [URL]``; by default http://localhost:8000/sse. MCP_SERVER_AUTH_KEY has the server's key,
if it has one.
"""

import asyncio
import os
import sys

from millstream import Client
from millstream.client import AccessDenied, ClientError

KEY = os.environ.get("MCP_SERVER_AUTH_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


# region: flow
async def main(server_url: str = "http://localhost:8000/sse") -> None:
    # GET /sse, the `endpoint` event, then `initialize`: all of it happens when the block is entered
    async with Client(server_url, revision="2024-11-05", headers=HEADERS) as session:
        print(f"{session.server.name} {session.server.version} ({session.transport}, {session.revision})")
        print("tools:", ", ".join(tool.name for tool in await session.tools()))
        result = await session.call("greet", {"name": "Azure OpenAI"})
        print(result.text)


# endregion


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except AccessDenied as exc:
        sys.exit(f"Error: {exc}\nSet MCP_SERVER_AUTH_KEY to the server's key.")
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python servernetwork.py")
