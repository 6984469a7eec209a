"""Data from a hostile server costs a client no more than its size, and the client keeps a bounded part of it."""

import itertools
import json
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from cases import for_each
from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving, with_discovery, with_handshake
from millstream import Client
from millstream.client import Options
from patience import WAIT

SCHEMA = {"type": "object", "properties": {}}


@for_each("tools", [[{}] * 2_000, [{"name": "a", "inputSchema": {"x-mcp-header": "a"}}] * 2_000])
async def test_thousands_of_invalid_tools_cause_few_warnings(
    tools: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.result({"tools": [*tools, {"name": "good", "inputSchema": SCHEMA}], "ttlMs": 0})

    caplog.clear()
    async with misbehaving(with_discovery(behave)) as server, Client(server.url, timeout=WAIT) as client:
        assert [each.name for each in await client.tools()] == ["good"]
    warnings = [each.getMessage() for each in caplog.records if "Skipped" in each.getMessage()]
    assert len(warnings) == 11
    assert "990 more" in warnings[-1]


async def test_header_annotations_are_dropped_when_the_list_changes() -> None:
    numbers = itertools.count()

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method == "tools/call":
            await asked.result({"content": []})
            return
        names = [f"t{next(numbers)}" for _ in range(4_000)]
        schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "a"}}}
        await asked.result({"tools": [{"name": each, "inputSchema": schema} for each in names], "ttlMs": 0})

    async with misbehaving(with_discovery(behave)) as server, Client(server.url, timeout=WAIT) as client:
        for _ in range(3):
            await client.tools(fresh=True)
        for name in ("t0", "t11999"):
            await client.call(name, a="1")
    assert [each.headers.get("mcp-param-a") for each in server.requests[-2:]] == [None, "1"]


async def test_cached_results_have_a_total_size() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        contents = [{"uri": "doc://1", "text": "x" * 40_000}]
        await asked.result({"contents": contents, "ttlMs": 60_000, "cacheScope": "private", "resultType": "complete"})

    options = Options(max_bytes=100_000)
    async with misbehaving(with_discovery(behave)) as server:
        async with Client(server.url, timeout=WAIT, options=options) as client:
            for uri in ("doc://1", "doc://2", "doc://2", "doc://3", "doc://3", "doc://2", "doc://1"):
                await client.read(uri)
        read = [each.message["params"]["uri"] for each in server.requests if each.method == "resources/read"]
    assert read == ["doc://1", "doc://2", "doc://3", "doc://1"]


async def test_lost_sessions_are_recognized_only_at_the_beginning_of_a_reply() -> None:
    """A reply may have 64 MiB, which would take a second to search."""
    # After the first one, the client checks with a ping that the session still exists.
    bodies = iter([b"x" * 20_000 + b" session not found", b"", b"Error: session not found"])

    async def behave(asked: ReceivedRequest) -> None:
        if not (body := next(bodies, b"")):
            await asked.result({})
        else:
            await asked.reply(body, status="400 Bad Request", type="text/plain")

    async with misbehaving(with_handshake(behave, "s1")) as server:
        async with Client(server.url, timeout=WAIT, revision="2025-11-25") as client:
            with pytest.raises(Exception, match="responded with status 400"):
                await client.request("ping")
            await client.request("ping")  # in a new session
        assert [each.method for each in server.requests].count("initialize") == 2


async def test_websockets_are_not_compressed() -> None:
    """A small compressed message could become a large one."""
    offered: list[str] = []

    async def behave(socket: ServerConnection) -> None:
        assert socket.request is not None
        offered.extend(socket.request.headers.get_all("Sec-WebSocket-Extensions"))
        async for message in socket:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": json.loads(message)["id"], "result": OFFER}))

    async with serve(behave, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}/ws", timeout=WAIT) as client:
            assert client.transport == "websocket"
    assert offered == []
