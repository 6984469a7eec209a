"""Transports for JSON-RPC messages between a raw client and a server.

A `Link` sends messages, and passes those from the server to the client's `take`. It handles only framing.
"""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from behavior.exchanges import Event, Exchange, Http
from millstream._app.runtime import Runtime
from millstream._transports.connection import ClientConnection, MemoryPipe
from patience import WAIT
from processes import TEST_PATH, RunState

Json = dict[str, Any]
Take = Callable[[Json | list[Json], "Json | None", int], None]
"""Message from the server, its request (if the transport relates them), and HTTP status (0 without one)."""

ROOT = Path(__file__).resolve().parent.parent.parent
WORLD = "tests/behavior/world.py"
ACCEPT = "application/json, text/event-stream"
NAME_PARAMS = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
VERSION = "io.modelcontextprotocol/protocolVersion"


def attach(runtime: Runtime, sent: list[bytes], *, peer: str = "") -> ClientConnection:
    """Return a connection to a server. Its client reads at once, and `sent` collects what it reads."""

    async def drain() -> None:
        """Do nothing, because no data is buffered."""

    return ClientConnection(runtime.dispatcher, lambda message: not sent.append(message), drain, peer=peer)


class Link(Protocol):
    """A client's transport."""

    async def send(self, message: Any, headers: Mapping[str, str] | None = None) -> None: ...

    async def open_standalone_stream(self) -> None:
        """Open the stand-alone stream, if the transport has one."""
        ...

    async def close(self) -> None: ...


class MemoryLink:
    """In-memory transport."""

    def __init__(self, runtime: Runtime, take: Take) -> None:
        self._pipe = MemoryPipe(runtime.dispatcher)
        self._take = take
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while True:
            self._take(json.loads(await self._pipe.receive()), None, 0)

    async def send(self, message: Any, headers: Mapping[str, str] | None = None) -> None:
        self._pipe.send(json.dumps(message).encode())

    async def open_standalone_stream(self) -> None:
        return None

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._pipe.close()


class Process:
    """A stdio server process, which several tests share."""

    def __init__(self, target: str, log: Path) -> None:
        command = [sys.executable, "-c", "from millstream._cli import main; main()"]
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [*command, "run", target, "--transport", "stdio"], cwd=ROOT, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=stderr, bufsize=0, env={**os.environ, "PYTHONPATH": TEST_PATH},
            )  # fmt: skip
        self.log = log
        self.failures = RunState.failures
        self.clients = 0
        """Number of open links. The last one reads."""
        self.next_id = 0
        self.initialized: Json | None = None
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.stdin, self.stdout = self.popen.stdin, self.popen.stdout
        os.set_blocking(self.stdout.fileno(), False)

    def end(self) -> int:
        """Close stdin, wait for the process to exit, and return its status."""
        self.stdin.close()
        try:
            return self.popen.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise
        finally:
            self.stdout.close()

    def kill(self) -> None:
        """Kill the process."""
        self.popen.kill()
        self.end()


class StdioLink:
    """stdio transport to a process."""

    def __init__(self, process: Process, take: Take) -> None:
        self._process = process
        self._take = take
        self._rest = b""
        process.clients += 1
        asyncio.get_running_loop().add_reader(process.stdout.fileno(), self._readable)

    def _readable(self) -> None:
        data = os.read(self._process.stdout.fileno(), 1 << 20)
        if not data:
            asyncio.get_running_loop().remove_reader(self._process.stdout.fileno())
            log = self._process.log.read_text("utf-8")[-2000:]
            self._take({"jsonrpc": "2.0", "method": "(the process ended)", "params": {"log": log}}, None, 0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line), None, 0)

    async def send(self, message: Any, headers: Mapping[str, str] | None = None) -> None:
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def open_standalone_stream(self) -> None:
        return None

    async def close(self) -> None:
        self._process.clients -= 1
        asyncio.get_running_loop().remove_reader(self._process.stdout.fileno())


class SseLink:
    """HTTP+SSE transport: a stream from the server, and a path for messages from the client."""

    def __init__(self, http: Http, take: Take) -> None:
        self._http = http
        self._take = take
        self.path = ""
        self.stream: Exchange
        self._reading: asyncio.Task[None]

    async def open(self, path: str = "/sse") -> "SseLink":
        """Open the stream. Its first event contains the path for messages."""
        self.stream = await self._http.fetch("GET", path, {"accept": "text/event-stream"})
        assert self.stream.status == 200
        events = self.stream.events()
        first = await asyncio.wait_for(anext(events), WAIT)
        assert first.name == "endpoint"
        self.path = first.data

        async def read() -> None:
            async for event in events:
                assert event.name == "message"
                assert event.id is None, "2024-11-05 has no event ids"
                self._take(json.loads(event.data), None, 0)

        self._reading = asyncio.get_running_loop().create_task(read())
        return self

    async def send(self, message: Any, headers: Mapping[str, str] | None = None) -> None:
        reply = await self._http.fetch(
            "POST", self.path, {"content-type": "application/json", **(headers or {})}, json.dumps(message).encode()
        )
        assert reply.status == 202, await reply.body()
        await reply.body()

    async def open_standalone_stream(self) -> None:
        return None

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self.stream.close()


@dataclass
class Stream:
    """An open POST or GET, with the events so far."""

    exchange: Exchange
    events: list[Event]
    over: asyncio.Event


class StreamableLink:
    """Streamable HTTP transport. Each reply is read in its own task, so streams overlap as in a client."""

    def __init__(self, http: Http, take: Take, *, version: str) -> None:
        self.http = http
        self._take = take
        self.version = version
        """Value of `MCP-Protocol-Version`. Empty for revisions without this header."""
        self.session = ""
        self.streams: dict[Any, Stream] = {}
        """Request id -> reply. "GET" is the stand-alone stream."""
        self._tasks: set[asyncio.Task[None]] = set()

    def headers(self, message: Any = None) -> dict[str, str]:
        """Return the headers for a message."""
        headers: dict[str, str] = {}
        handshake = (
            isinstance(message, dict) and message.get("method") == "initialize" and "_meta" not in message["params"]
        )
        if self.version and not handshake:
            headers["mcp-protocol-version"] = self.version
        if self.session:
            headers["mcp-session-id"] = self.session
        if isinstance(message, dict) and VERSION in message.get("params", {}).get("_meta", {}):
            method = message["method"]
            headers["mcp-method"] = method
            if method in NAME_PARAMS:
                headers["mcp-name"] = _header_text(message["params"].get(NAME_PARAMS[method], ""))
        return headers

    async def post(self, message: Any, headers: Mapping[str, str] | None = None) -> Exchange:
        """Send a message, and return when the head of the reply has arrived."""
        given = {"content-type": "application/json", "accept": ACCEPT, **self.headers(message), **(headers or {})}
        reply = await self.http.fetch("POST", "/mcp", given, json.dumps(message).encode())
        self.session = reply.headers.get("mcp-session-id", self.session)
        return reply

    async def send(self, message: Any, headers: Mapping[str, str] | None = None) -> None:
        if isinstance(message, dict) and "method" in message and "id" in message:
            self._start(self._exchange(message, headers))
            return
        reply = await self.post(message, headers)
        if isinstance(message, list) and reply.streaming:
            stream = self.streams["batch"] = Stream(reply, [], asyncio.Event())
            self._start(self._to_end(stream))
            return
        body = await reply.body()
        if body and isinstance(message, list):
            self._take(json.loads(body), None, reply.status)
        else:
            assert (reply.status, body) == (202, b""), (reply.status, body)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        return task

    async def _exchange(self, message: Json, headers: Mapping[str, str] | None) -> None:
        exchange = await self.post(message, headers)
        stream = self.streams[message["id"]] = Stream(exchange, [], asyncio.Event())
        try:
            if exchange.streaming:
                await self.read(stream, message)
            else:
                self._take(json.loads(await exchange.body()), message, exchange.status)
        finally:
            stream.over.set()

    async def read(self, stream: Stream, message: Json | None = None) -> None:
        """Pass on the messages of a stream until it ends."""
        async for event in stream.exchange.events():
            stream.events.append(event)
            assert event.name == "message"
            if event.data:
                self._take(json.loads(event.data), message, stream.exchange.status)

    async def resume(self, last: str | None = None, **headers: str) -> Stream:
        """Send a GET for the stand-alone stream, or to resume after an event."""
        given = {"accept": "text/event-stream", **self.headers(), **headers}
        if last is not None:
            given["last-event-id"] = last
        exchange = await self.http.fetch("GET", "/mcp", given)
        stream = Stream(exchange, [], asyncio.Event())
        if exchange.streaming:
            self._start(self._to_end(stream))
        return stream

    async def _to_end(self, stream: Stream) -> None:
        try:
            await self.read(stream)
        finally:
            stream.over.set()

    async def open_standalone_stream(self) -> None:
        stream = await self.resume()
        assert stream.exchange.status == 200
        self.streams["GET"] = stream

    async def close(self) -> None:
        for stream in self.streams.values():
            stream.exchange.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in failures:
            if isinstance(failure, AssertionError | ValueError):
                raise failure


def _header_text(value: str) -> str:
    with suppress(UnicodeEncodeError):
        value.encode("ascii")
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="
