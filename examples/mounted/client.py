"""Uses both servers of `main.py`: ``python client.py [URL]``; by default http://127.0.0.1:8000.

MCP_SERVER_AUTH_KEY has the servers' key, if they have one.
"""

import asyncio
import os
import sys

from millstream import Client
from millstream.client import AccessDenied, ClientError

KEY = os.environ.get("MCP_SERVER_AUTH_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


# region: client
async def main(url: str = "http://127.0.0.1:8000") -> None:
    async with (
        Client(f"{url}/echo/mcp", headers=HEADERS) as echo,
        Client(f"{url}/math/mcp", headers=HEADERS) as math,
    ):
        said, total = await asyncio.gather(
            echo.call("echo", message="hello"), math.call("add_two", n=8, result_type=int)
        )
        print(f"{echo.server.name}: {said.text}")
        print(f"{math.server.name}: {total}")


# endregion


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except AccessDenied as exc:
        sys.exit(f"Error: {exc}\nSet MCP_SERVER_AUTH_KEY to the servers' key.")
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: uvicorn main:app")
