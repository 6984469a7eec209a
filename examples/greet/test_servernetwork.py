"""Tests of the server through a client in memory, without a port or process."""

import asyncio

from servernetwork import mcp

from millstream import Client


def test_greets_by_name() -> None:
    async def talk() -> str:
        async with Client(mcp) as client:
            return await client.call("greet", name="Ada", result_type=str)

    assert asyncio.run(talk()) == "Hello Hello, Ada!"
