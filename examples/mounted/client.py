"""Uses both servers of `main.py`: ``python client.py [URL]``; by default http://127.0.0.1:8000."""

import asyncio
import sys

from millstream import Client
from millstream.client import ClientError


# region: client
async def main(url: str = "http://127.0.0.1:8000") -> None:
    async with Client(f"{url}/echo/mcp") as echo, Client(f"{url}/math/mcp") as math:
        said, total = await asyncio.gather(
            echo.call("echo", message="hello"), math.call("add_two", n=8, result_type=int)
        )
        print(f"{echo.server.name}: {said.text}")
        print(f"{math.server.name}: {total}")


# endregion


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: uvicorn main:app")
