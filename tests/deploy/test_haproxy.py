import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing

import pytest

from millstream.client import Client
from patience import WAIT
from processes import ROOT, free_port, run_command, run_server
from proxies import NEEDS_HAPROXY, haproxy
from redis_parts import RedisServer, until

pytestmark = [pytest.mark.server, NEEDS_HAPROXY]
PROGRAM = """
import asyncio
from millstream import Context, Server

mcp = Server("shop", serve="all")


@mcp.tool
async def add(a: int, b: int) -> int:
    return a + b


@mcp.tool
async def announce(text: str) -> str:
    await mcp.hub.publish("news", text)
    return "done"


@mcp.tool
async def waits(ctx: Context) -> str:
    await ctx.progress(1)
    await asyncio.Event().wait()
    return "never"
"""
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
    "progressToken": 1,
}
WAITS = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "waits", "arguments": {}, "_meta": META}}


class Fronted:
    """haproxy, and the servers behind it."""

    def __init__(self, port: int, servers: tuple[int, int]) -> None:
        self.port = port
        self._servers = servers

    async def under_way(self) -> list[tuple[int, int]]:
        """Streams and calls of each server, as its own /health tells."""
        return [await asyncio.to_thread(self._health, port) for port in self._servers]

    @staticmethod
    def _health(port: int) -> tuple[int, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=WAIT) as reply:
            told = json.load(reply)
        return told["streams"], told["calls"]

    @asynccontextmanager
    async def request(
        self, head: str, body: bytes = b""
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A request on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        fields = f"host: 127.0.0.1\r\naccept: application/json, text/event-stream\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head} HTTP/1.1\r\n{fields}content-type: application/json\r\n".encode())
        if body:
            writer.write(b"mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: waits\r\n")
        writer.write(b"\r\n" + body)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    """Two servers behind the example."""
    folder = tmp_path_factory.mktemp("haproxy")
    (folder / "shop.py").write_text(PROGRAM)
    text = (ROOT / "examples" / "haproxy.cfg").read_text("utf-8")
    ports = free_port(), free_port()
    for old, new in zip((8000, 8001), ports, strict=True):
        text = text.replace(f"127.0.0.1:{old} ", f"127.0.0.1:{new} ")
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        for port in ports:
            command = run_command(str(folder / "shop.py"), port, "--store", redis.url)
            stack.enter_context(run_server(command, port, folder / f"{port}.log"))
        yield Fronted(stack.enter_context(haproxy(folder, text)), ports)


async def status(fronted: Fronted, path: str) -> int:
    """Of a GET."""
    async with fronted.request(f"GET {path}") as (reader, _):
        return int((await asyncio.wait_for(reader.readline(), WAIT)).split()[1])


async def test_haproxy_shares_sessions_and_blocks_private_paths(fronted: Fronted) -> None:
    for revision in ("2025-11-25", "2026-07-28"):
        async with Client(f"http://127.0.0.1:{fronted.port}/mcp", revision=revision) as client:
            assert [(await client.call("add", a=n, b=1)).text for n in range(6)] == ["1", "2", "3", "4", "5", "6"]
    for path in ("/dashboard", "/chat", "/inspect", "/metrics", "/publish", "/chat/members"):
        assert await status(fronted, path) == 404


async def test_haproxy_streams_events_at_once(fronted: Fronted) -> None:
    async with (
        fronted.request("GET /events?channel=news") as (one, _),
        fronted.request("GET /events?channel=news") as (two, _),
        fronted.request("POST /mcp", json.dumps(WAITS).encode()) as (call, _),
    ):
        for reader in (one, two):
            await asyncio.wait_for(reader.readuntil(b"id: "), WAIT)
        await asyncio.wait_for(call.readuntil(b"notifications/progress"), WAIT)
        async with Client(f"http://127.0.0.1:{fronted.port}/mcp") as client:
            await client.call("announce", text="now")
        for reader in (one, two):
            await asyncio.wait_for(reader.readuntil(b"data: now\n"), WAIT)


async def test_haproxy_passes_websockets(fronted: Fronted) -> None:
    async with Client(f"ws://127.0.0.1:{fronted.port}/ws") as client:
        assert (await client.call("add", a=20, b=22)).text == "42"


async def test_half_closed_clients_are_noticed(fronted: Fronted) -> None:
    async def idle() -> bool:
        return await fronted.under_way() == [(0, 0), (0, 0)]

    await until(idle)  # what the tests before have left
    async with (
        fronted.request("GET /events?channel=news") as (stream, of_stream),
        fronted.request("POST /mcp", json.dumps(WAITS).encode()) as (call, of_call),
    ):
        await asyncio.wait_for(stream.readuntil(b"id: "), WAIT)
        await asyncio.wait_for(call.readuntil(b"notifications/progress"), WAIT)
        assert not await idle()
        for writer in (of_stream, of_call):
            writer.write_eof()
        await until(idle)


def test_example_passes_small_chunks_at_once() -> None:
    assert "    option http-no-delay\n" in (ROOT / "examples" / "haproxy.cfg").read_text("utf-8")
