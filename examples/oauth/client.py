"""Signs in at `server.py` with a browser, and calls its tools: ``python client.py [URL]``.

It finds the authorization server, registers, sends the person there, and waits for the browser to come back. For a tool
that needs more, it asks the person again. Tokens are kept for next time in a file that only the person can read.
"""

import asyncio
import sys

from millstream import Client
from millstream.client import ClientError, OAuth, Options


# region: client
async def main(url: str = "http://127.0.0.1:8000/mcp") -> None:
    options = Options(auth=OAuth(name="My client"))
    async with Client(url, options=options) as client:
        print((await client.call("who_am_i")).text)
        print((await client.call("secret")).text)
        print((await client.call("who_am_i")).text)


# endregion


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python server.py")
