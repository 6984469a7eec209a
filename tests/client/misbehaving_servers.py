"""Misbehaving servers on real sockets. Each test defines the response to a request."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from millstream import Client
from millstream.client import ClientError, Options
from patience import WAIT

OFFER = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {}, "resources": {}},
    "ttlMs": 0,
    "cacheScope": "private",
}
GREETING = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "r", "version": "1"}}
DONE = {"resultType": "complete", "content": [{"type": "text", "text": "done"}]}


@dataclass
class ReceivedRequest:
    """A received HTTP request, and the socket for the reply."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.body)) if self.body else {}

    @property
    def method(self) -> str:
        return str(self.message.get("method", ""))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(
        self, body: bytes, *, status: str = "200 OK", type: str = "application/json", more: str = ""
    ) -> None:
        """Send a complete reply."""
        head = f"HTTP/1.1 {status}\r\nContent-Type: {type}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await self.write(head.encode() + body)

    async def result(self, result: dict[str, Any], **more: Any) -> None:
        """Send the response to this request."""
        await self.reply(self.answer(result), **more)

    async def error(self, code: int, message: str, data: object = None, **more: Any) -> None:
        """Send an error as the response to this request."""
        error = {"code": code, "message": message} | ({} if data is None else {"data": data})
        await self.reply(json.dumps({"jsonrpc": "2.0", "id": self.message.get("id"), "error": error}).encode(), **more)

    def answer(self, result: dict[str, Any]) -> bytes:
        return json.dumps({"jsonrpc": "2.0", "id": self.message["id"], "result": result}).encode()

    async def stream(self) -> None:
        """Send the head of an event stream."""
        await self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def event(self, message: bytes, fields: str = "") -> None:
        await self.chunk(fields.encode() + b"data: " + message + b"\n\n")

    async def say(self, method: str, params: object, **more: Any) -> None:
        """Send a notification, or with an `id` a request, as an event."""
        await self.event(json.dumps({"jsonrpc": "2.0", **more, "method": method, "params": params}).encode())

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")


Behave = Callable[[ReceivedRequest], Awaitable[None]]


@dataclass
class MisbehavingServer:
    """The URL of the server, and the requests it received."""

    url: str
    port: int = 0
    requests: list[ReceivedRequest] = field(default_factory=list)
    open: int = 0
    """Number of client connections."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no client is connected."""


@asynccontextmanager
async def misbehaving(behave: Behave, port: int = 0) -> AsyncGenerator[MisbehavingServer, None]:
    """Run a server that calls `behave` for each request. If it raises ConnectionError, the connection is closed."""
    world = MisbehavingServer("")
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        world.open += 1
        world.left.clear()
        try:
            while True:
                asked = await read_request(reader, writer)
                world.requests.append(asked)
                await behave(asked)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            world.open -= 1
            if not world.open:
                world.left.set()
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    host, world.port = server.sockets[0].getsockname()[:2]
    world.url = f"http://{host}:{world.port}/mcp"
    try:
        yield world
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def connected(behave: Behave, **options: Any) -> AsyncGenerator[tuple[MisbehavingServer, Client], None]:
    """Run a server that calls `behave` for each request, and connect a client."""
    async with misbehaving(behave) as server, Client(server.url, timeout=WAIT, **options) as client:
        yield server, client


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> ReceivedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *rest = head.strip().split("\r\n")
    verb, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ReceivedRequest(verb, path, headers, body, writer)


def with_discovery(behave: Behave) -> Behave:
    """Answer `server/discover` as a 2026-07-28 server, and pass other requests to `behave`."""

    async def both(asked: ReceivedRequest) -> None:
        if asked.method == "server/discover":
            await asked.result(OFFER)
        else:
            await behave(asked)

    return both


def with_handshake(behave: Behave, session: str = "") -> Behave:
    """Answer the handshake of 2025-11-25, without a GET stream, and pass other requests to `behave`."""

    async def both(asked: ReceivedRequest) -> None:
        if asked.method == "initialize":
            await asked.result(GREETING, more=f"Mcp-Session-Id: {session}\r\n" if session else "")
        elif asked.method.startswith("notifications/"):
            await asked.reply(b"", status="202 Accepted")
        elif asked.method == "server/discover":
            await asked.error(-32601, "Method not found")
        elif asked.verb in ("GET", "DELETE") and "last-event-id" not in asked.headers:
            await asked.reply(b"", status="405 Method Not Allowed")
        else:
            await behave(asked)

    return both


async def check_failure(
    behave: Behave, expected: type[ClientError], *words: str, options: Options | None = None
) -> None:
    """Assert that a call raises an error whose text has one or two sentences with some words."""
    async with misbehaving(behave) as server:
        with pytest.raises(expected) as caught:
            async with Client(server.url, timeout=WAIT, options=options) as client:
                await client.call("x")
        assert_readable(caught.value, *words)


def assert_readable(error: BaseException, *words: str) -> None:
    text = str(error)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert len(text) < 400


async def refuse(request: ReceivedRequest) -> None:
    """Respond as servers do to what they don't offer."""
    if request.verb == "GET":
        await request.reply(b"", status="405 Method Not Allowed")
    elif "id" in request.message:
        await request.error(-32601, "Method not found")
    else:
        await request.reply(b"", status="202 Accepted")
