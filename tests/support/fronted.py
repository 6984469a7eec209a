"""Two servers behind a proxy, and checks that every proxy example must pass."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

from millstream.client import Client
from patience import WAIT
from processes import free_port, run_command, run_server
from redis_parts import RedisServer

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
    """A proxy, and the two servers behind it."""

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

    async def status(self, path: str) -> int:
        """Return the status of a GET."""
        async with self.request(f"GET {path}") as (reader, _):
            return int((await asyncio.wait_for(reader.readline(), WAIT)).split()[1])


@contextmanager
def two_servers(folder: Path) -> Iterator[tuple[int, int]]:
    """Run two servers of the program that share a store, and yield their ports."""
    (folder / "shop.py").write_text(PROGRAM)
    ports = free_port(), free_port()
    with ExitStack() as stack:
        redis = stack.enter_context(closing(RedisServer()))
        for port in ports:
            command = run_command(str(folder / "shop.py"), port, "--store", redis.url)
            stack.enter_context(run_server(command, port, folder / f"{port}.log"))
        yield ports


async def check_sessions_and_paths(fronted: Fronted) -> None:
    """Check that either server continues a session, and that private paths aren't reachable."""
    for revision in ("2025-11-25", "2026-07-28"):
        async with Client(f"http://127.0.0.1:{fronted.port}/mcp", revision=revision) as client:
            assert [(await client.call("add", a=n, b=1)).text for n in range(6)] == ["1", "2", "3", "4", "5", "6"]
    for path in ("/dashboard", "/chat", "/inspect", "/metrics", "/publish"):
        assert await fronted.status(path) == 404
        # The server decodes a path, and a proxy that compares it as it was sent would pass this one.
        assert await fronted.status(f"/%{ord(path[1]):02x}{path[2:]}") == 404


async def check_events(fronted: Fronted) -> None:
    """Check that events and progress pass at once."""
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


async def check_websockets(fronted: Fronted) -> None:
    """Check that WebSockets pass."""
    async with Client(f"ws://127.0.0.1:{fronted.port}/ws") as client:
        assert (await client.call("add", a=20, b=22)).text == "42"
