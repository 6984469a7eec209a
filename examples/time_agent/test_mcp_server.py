"""Tests of the server through a client in memory, without a port or process."""

import asyncio

from mcp_server import make

from millstream import Client


def get_time(timezone: str) -> str:
    async def talk() -> str:
        async with Client(make()) as client:
            return (await client.call("get_current_time", timezone=timezone, raise_on_error=False)).text

    return asyncio.run(talk())


def test_tells_the_time_of_a_zone() -> None:
    assert get_time("Asia/Tokyo").endswith("+09:00")


def test_explains_an_unknown_zone() -> None:
    assert "IANA name" in get_time("Nowhere")
