import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import pytest

from processes import SharedServer, run_command, share_server, uvicorn_command
from seeds.programs import WAIT

pytestmark = pytest.mark.server

INITIALIZE = {
    "jsonrpc": "2.0",
    "method": "initialize",
    "params": {"protocolVersion": "2024-11-05", "capabilities": {}},
    "id": 1,
}
GREET = {
    "jsonrpc": "2.0",
    "method": "tools/call",
    "params": {"name": "greet", "arguments": {"name": "Azure OpenAI"}},
    "id": 2,
}
"""Seed 003, message flow, as it stands: no `clientInfo`."""


@pytest.fixture(scope="module")
def greeter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`examples/greet/servernetwork.py`, the Hello server of seed 003."""
    with share_server(
        partial(run_command, "examples/greet/servernetwork.py"), tmp_path_factory.mktemp("greet")
    ) as server:
        yield server


@pytest.fixture(scope="module")
def two_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`examples/echo_math.py`, the FastAPI application of seed 004."""
    with share_server(partial(uvicorn_command, "examples.echo_math:app"), tmp_path_factory.mktemp("two")) as server:
        yield server


class Conversation:
    """A client of HTTP+SSE: a stream to read, and a path to post to."""

    def __init__(self, session: aiohttp.ClientSession, base: str, stream: aiohttp.ClientResponse) -> None:
        self._session = session
        self._base = base
        self._stream = stream
        self.path = ""

    async def event(self) -> tuple[str, str]:
        """Return the name and data of the next event."""
        name, data = "message", ""
        async with asyncio.timeout(WAIT):
            while line := (await self._stream.content.readline()).decode().removesuffix("\n").removesuffix("\r"):
                key, _, value = line.partition(":")
                name, data = (
                    (value.strip(), data) if key == "event" else (name, value.strip() if key == "data" else data)
                )
        return name, data

    async def ask(self, message: dict[str, Any]) -> Any:
        """Post a message, and return the response from the stream."""
        async with self._session.post(self._base + self.path, json=message) as accepted:
            assert accepted.status == 202
        while True:
            name, data = await self.event()
            if name == "message" and data:
                return json.loads(data)


@asynccontextmanager
async def conversation(port: int) -> AsyncIterator[Conversation]:
    """Open the stream like seed 003, and read the path from the `endpoint` event."""
    base = f"http://localhost:{port}"
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
    async with aiohttp.ClientSession() as session, session.get(f"{base}/sse", headers=headers) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"].startswith("no-cache")
        client = Conversation(session, base, stream)
        name, client.path = await client.event()
        assert name == "endpoint"
        assert client.path.startswith("/messages/?session_id=")
        yield client


async def test_hello_server_greets_over_sse(greeter: SharedServer) -> None:
    async with conversation(greeter.port()) as client:
        opened = await client.ask(INITIALIZE)
        assert opened["id"] == 1
        assert opened["result"]["protocolVersion"] == "2024-11-05"
        assert {"tools", "resources", "prompts"} <= set(opened["result"]["capabilities"])
        assert set(opened["result"]["serverInfo"]) == {"name", "version"}
        called = await client.ask(GREET)
        assert called["id"] == 2
        assert called["result"]["content"] == [{"type": "text", "text": "Hello Hello, Azure OpenAI!"}]


async def test_time_server_works_over_sse(hub: int) -> None:
    async with conversation(hub) as client:
        await client.ask(INITIALIZE)
        listed = await client.ask({"jsonrpc": "2.0", "method": "tools/list", "id": 2})
        assert "get_current_time" in {tool["name"] for tool in listed["result"]["tools"]}
        called = await client.ask(
            {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "get_current_time"}, "id": 3}
        )
        assert called["result"]["content"][0]["text"].endswith("+00:00")


async def test_each_stream_has_its_own_session(hub: int) -> None:
    async with conversation(hub) as one, conversation(hub) as two:
        assert one.path != two.path
        await asyncio.gather(one.ask(INITIALIZE), two.ask(INITIALIZE))
        first, second = await asyncio.gather(one.ask({**GREET, "id": "one"}), two.ask({**GREET, "id": "two"}))
        assert (first["id"], second["id"]) == ("one", "two")


@pytest.mark.parametrize(
    ("path", "tool", "arguments", "answer"),
    [("/echo/mcp/", "echo", {"message": "hi"}, "Echo: hi"), ("/math/mcp/", "add_two", {"n": 3}, "5")],
)
async def test_two_servers_are_mounted_in_one_application(
    two_servers: SharedServer, path: str, tool: str, arguments: dict[str, Any], answer: str
) -> None:
    base = f"http://localhost:{two_servers.port()}"
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    async with aiohttp.ClientSession() as session, session.post(base + path, json=call) as reply:
        assert reply.status == 200
        assert (await reply.json())["result"]["content"][0]["text"] == answer
