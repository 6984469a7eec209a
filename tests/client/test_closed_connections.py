"""Servers that close connections without announcing it."""

import asyncio

import pytest

from client.misbehaving_servers import DONE, GREETING, OFFER, ReceivedRequest, connected, misbehaving, refuse
from millstream import Server
from millstream.client import Client, ConnectionLost
from patience import WAIT

TOOLS = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}


async def answer(request: ReceivedRequest, *, handshake: bool) -> None:
    results = {"tools/list": TOOLS, "tools/call": DONE, "initialize" if handshake else "server/discover": OFFER}
    if handshake:
        results["initialize"] = GREETING
    if request.method in results:
        await request.result(results[request.method])
    else:
        await refuse(request)


@pytest.mark.parametrize("handshake", [False, True], ids=["per-request", "handshake"])
async def test_server_that_closes_after_each_response_is_usable(*, handshake: bool) -> None:
    async def behave(request: ReceivedRequest) -> None:
        await answer(request, handshake=handshake)
        raise ConnectionError

    async with misbehaving(behave) as server:
        async with Client(server.url, timeout=WAIT) as client:
            assert [(await client.call("hello")).text for _ in range(5)] == ["done"] * 5
        mcp = Server("front")
        mcp.upstream("up", server.url, prefix="", start_timeout=WAIT)
        async with Client(mcp, timeout=WAIT) as client:
            calls = await asyncio.gather(*[client.call("hello") for _ in range(20)])
            assert [each.text for each in calls] == ["done"] * 20
        assert sum(each.method == "tools/call" for each in server.requests) == 25


async def test_call_that_a_reused_connection_may_have_delivered_is_not_repeated() -> None:
    served: set[int] = set()

    async def behave(request: ReceivedRequest) -> None:
        """Respond to the first request of each connection, and close at the second."""
        if id(request.writer) in served and request.method == "tools/call":
            raise ConnectionError
        served.add(id(request.writer))
        await answer(request, handshake=False)

    async with connected(behave) as (server, client):
        with pytest.raises(ConnectionLost, match="closed the connection before it responded"):
            await client.call("hello")
        assert sum(each.method == "tools/call" for each in server.requests) == 1
        # It isn't trusted any more: these get connections of their own.
        assert [(await client.call("hello")).text for _ in range(3)] == ["done"] * 3
