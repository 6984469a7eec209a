"""The first program that uses a server: ``python first_client.py``, beside `bookshop.py`."""

import asyncio

from millstream import Client


async def main() -> None:
    async with Client("bookshop.py") as client:
        for tool in await client.tools():
            print(tool.name, "-", tool.description)
        found = await client.call("search", words="Tolkien")
        print(found.data)


if __name__ == "__main__":
    asyncio.run(main())
