"""Tests of the server through a client in memory, without a port or process."""

import asyncio

from main import mcp

from millstream import Client


def test_broadcasts_are_kept_for_listeners_that_reconnect() -> None:
    async def talk() -> list[bytes | None]:
        async with mcp.running(), Client(mcp) as client:
            assert "0 listeners" in (await client.call("send_sse_message", message="Hello SSE World!")).text
            return [event.data for event in await mcp.hub.history("broadcast")]

    assert asyncio.run(talk()) == [b"Hello SSE World!"]
