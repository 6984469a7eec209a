"""A client that initializes an open session again, as helpers and their callers do with the official SDK."""

import asyncio
import json
from typing import Any

from mcp.server import MCPServer

from app_peer import ask
from cases import for_each
from millstream import Server
from patience import WAIT
from wire import LATEST_HANDSHAKE, open_pipe, request, run_wire


def own() -> Server:
    mcp = Server("books")
    mcp.tool(add)
    return mcp


def relay() -> Server:
    program = MCPServer("books")
    program.tool()(add)
    gateway = Server("gateway")
    gateway.upstream("books", program, prefix="")
    return gateway


def add(a: int, b: int) -> int:
    return a + b


def initialize(name: str, number: int) -> dict[str, Any]:
    client = {"name": name, "version": "1"}
    return request(
        "initialize", {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": client}, number
    )


@for_each("make", [own, relay])
async def test_connection_may_be_initialized_twice_by_the_same_client(make: Any) -> None:
    mcp = make()
    async with asyncio.timeout(WAIT), mcp.running() as runtime:
        while (await ask(mcp, "GET", "/readyz")).body != b"ok\n":  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)
        pipe = open_pipe(runtime)
        replies: list[Any] = []
        for number, name in enumerate(("a", "a", "b", "a")):
            pipe.send(json.dumps(initialize(name, number)).encode())
            replies.append(json.loads(await pipe.receive()))
        await pipe.close()
    assert replies[0]["result"]["serverInfo"]["name"] == "books"
    assert replies[0]["result"] == replies[1]["result"] == replies[3]["result"]
    assert "already initialized" in replies[2]["error"]["message"]


@for_each("make", [own, relay])
async def test_session_may_be_initialized_twice_by_the_same_client_until_it_ends(make: Any) -> None:
    async with asyncio.timeout(WAIT), run_wire(make(), "asgi") as wire:
        headers = await wire.initialize()
        again = await wire.post(initialize("t", 1), headers)
        assert again.message["result"]["serverInfo"]["name"] == "books"
        assert b"mcp-session-id" not in again.headers
        calling = {"name": "add", "arguments": {"a": 1, "b": 2}}
        assert (await wire.post(request("tools/call", calling, 2), headers)).message["result"]["content"][0][
            "text"
        ] == "3"
        assert (await wire.post(initialize("other", 3), headers)).status == 400
        ended = {**headers, "mcp-session-id": headers["mcp-session-id"][:-2]}
        assert (await wire.post(initialize("t", 4), ended)).status == 404
